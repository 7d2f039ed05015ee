"""The tables: SQLAlchemy Core `Table`s on one `MetaData`; the "mapped class" of the glossary is one of these.

They are plain tables rather than mapped classes because no row ever becomes an ORM object here: statements
are built from these columns and compiled once, and records are turned into values by our own functions.

What holds for all of them, so that one schema serves one server and a distributed one (a lint checks it):

- `partition_id` leads every primary key. It is an ordinary column that the store fills; it never changes.
- No table names a schema; `schema_translate_map` and the migrations decide where they live.
- Text compares by code point (collation "C") on every database, so orders, prefixes and cursors agree with
  memory's.
- Documents are `json`, kept to the letter; only `search_attributes` is `jsonb`, because it is searched.
- `Table.info` says how a table lies on a distributed engine (`distribution`), whose partition its rows are in
  (`partition_of`), and repeats the storage parameters that the migrations set (`storage`; their reasons are in
  `migrations/NOTES.md`), because SQLAlchemy has no place for them.

The migrations make these tables; a test compares what they make with what stands here. Only `postgres/` and
the lint import this module.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType

__all__ = [
    "XID8",
    "component_states",
    "correlations",
    "early_events",
    "feed_checkpoints",
    "flow_definitions",
    "flow_events",
    "flow_instances",
    "idempotency_keys",
    "metadata",
    "partition_assignments",
    "settings",
    "step_results",
    "timers",
    "workers",
]

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
    }
)

# Copied to every node: small, rarely written, joined from everywhere.
_REFERENCE = "reference"
# Split by partition_id, every table in the same way, so that one partition of all of them lies on one node.
_COLOCATED = "partition_id, colocated with flow_instances"


def _spread_by(owner: str, storage: dict[str, str] | None = None) -> dict[str, Any]:
    """What `Table.info` says of a distributed table: whose partition its rows lie in, and its storage parameters."""
    return {"distribution": _COLOCATED, "partition_of": owner, "storage": storage or {}}


class XID8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id: grows with each transaction, never wraps."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Returns the name of the type."""
        return "xid8"


def _text(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Text(collation="C"), nullable=nullable)


def _json(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, JSON(), nullable=nullable)


def _uuid(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, Uuid(), nullable=nullable)


def _instant(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _integer(name: str) -> Column[int]:
    return Column(name, Integer(), nullable=False, autoincrement=False)


def _bigint(name: str, *, nullable: bool = False, default: str | None = None) -> Column[int]:
    server_default = None if default is None else text(default)
    return Column(name, BigInteger(), nullable=nullable, server_default=server_default, autoincrement=False)


def _partition() -> Column[int]:
    return _integer("partition_id")


def _lease() -> list[Column[Any]]:
    """The columns of a lease; the token only ever grows for one row."""
    return [
        _text("lease_holder", nullable=True),
        _bigint("lease_token", default="0"),
        _instant("lease_expires_at", nullable=True),
    ]


def _one_of(column: str, *values: str) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=column)


def _of_instance() -> ForeignKeyConstraint:
    """Rows that go with their flow instance."""
    return ForeignKeyConstraint(
        ["partition_id", "flow_instance_id"],
        ["flow_instances.partition_id", "flow_instances.flow_instance_id"],
        ondelete="CASCADE",
    )


flow_definitions = Table(
    "flow_definitions",
    metadata,
    _text("flow_id"),
    _integer("version"),
    _text("digest"),
    _json("content"),
    _instant("deployed_at"),
    _instant("undeployed_at", nullable=True),  # hidden since; the row stays, because instances refer to it
    PrimaryKeyConstraint("flow_id", "version"),
    info={"distribution": _REFERENCE},
)

settings = Table(
    "settings", metadata, _text("name"), _json("value"), PrimaryKeyConstraint("name"), info={"distribution": _REFERENCE}
)


flow_instances = Table(
    "flow_instances",
    metadata,
    _partition(),
    _uuid("flow_instance_id"),
    _uuid("root_id"),
    _uuid("parent_id", nullable=True),
    _text("flow_id"),
    _integer("flow_version"),
    _text("status"),
    _text("business_key", nullable=True),
    _json("trigger_data"),
    _json("error", nullable=True),
    Column("search_attributes", JSONB(), nullable=False, server_default=text("'{}'::jsonb")),
    _json("waits", nullable=True),  # step id -> correlation key, of the steps that are suspended now
    _json("pending_timers", nullable=True),  # step id -> timer id, likewise
    _bigint("version"),
    _bigint("event_count"),  # the last sequence used in flow_events
    # Grows with each timer that is scheduled without advancing the flow: an advance that ends the flow at
    # the same moment then waits for that row, sees it changed, and removes that timer too.
    _bigint("timer_changes", default="0"),
    *_lease(),
    _instant("created_at"),
    _instant("updated_at"),
    _instant("completed_at", nullable=True),
    PrimaryKeyConstraint("partition_id", "flow_instance_id"),
    ForeignKeyConstraint(["flow_id", "flow_version"], ["flow_definitions.flow_id", "flow_definitions.version"]),
    _one_of(
        "status",
        "INITIALIZING",
        "RUNNING",
        "WAITING_FOR_EVENT",
        "WAITING_FOR_TIMER",
        "COMPLETED",
        "FAILED",
        "CANCELLED",
    ),
    # No index mentions version, updated_at or a lease: storing a step and claiming, which change nothing
    # else that is indexed, then stay heap-only updates. A range of updated_at is a filter over one of these
    # orders.
    Index("ix_flow_instances_created", "created_at", "flow_instance_id"),  # lists without a filter
    Index("ix_flow_instances_status", "status", "created_at", "flow_instance_id"),  # lists and counts by status
    Index("ix_flow_instances_flow", "flow_id", "created_at", "flow_instance_id"),  # lists of one definition, use of it
    Index(
        "ix_flow_instances_live",  # claims: oldest first, passing over those that have ended
        "created_at",
        "flow_instance_id",
        postgresql_where=text("completed_at IS NULL"),
    ),
    Index(
        "ix_flow_instances_completed",  # purge and lists by the time of the end
        "completed_at",
        "flow_instance_id",
        postgresql_where=text("completed_at IS NOT NULL"),
    ),
    Index("ix_flow_instances_root", "root_id"),  # whole families, for purge
    Index("ix_flow_instances_parent", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),  # children
    Index(
        "ix_flow_instances_business_key",  # exact within a definition, and prefixes with or without one
        "business_key",
        "flow_id",
        postgresql_where=text("business_key IS NOT NULL"),
    ),
    Index(
        "ix_flow_instances_search_attributes",  # containment (@>): smaller than the default operators
        "search_attributes",
        postgresql_using="gin",
        postgresql_ops={"search_attributes": "jsonb_path_ops"},
    ),
    info=_spread_by(
        "flow instance",
        {"fillfactor": "80", "autovacuum_vacuum_scale_factor": "0.02", "autovacuum_analyze_scale_factor": "0.05"},
    ),
)

step_results = Table(
    "step_results",
    metadata,
    _partition(),
    _uuid("flow_instance_id"),
    _text("step_id"),
    _text("status"),
    _json("outputs"),
    _json("error", nullable=True),
    _integer("attempt"),
    _instant("completed_at"),
    PrimaryKeyConstraint("partition_id", "flow_instance_id", "step_id"),
    _of_instance(),
    _one_of("status", "COMPLETED", "FAILED"),
    info=_spread_by("flow instance"),
)

component_states = Table(
    "component_states",
    metadata,
    _partition(),
    _uuid("flow_instance_id"),
    _text("step_id"),
    _json("state"),
    _bigint("version"),
    _instant("expires_at", nullable=True),
    _instant("updated_at"),
    PrimaryKeyConstraint("partition_id", "flow_instance_id", "step_id"),
    _of_instance(),
    info=_spread_by("flow instance"),
)

_LIVE_TIMER = text("status IN ('PENDING', 'CLAIMED')")

timers = Table(
    "timers",
    metadata,
    _partition(),
    _uuid("timer_id"),
    _uuid("flow_instance_id"),
    _text("step_id"),
    _instant("due_at"),
    _text("status"),
    *_lease(),
    _integer("attempts"),
    _integer("max_attempts"),
    _json("payload"),
    _text("last_error", nullable=True),
    PrimaryKeyConstraint("partition_id", "timer_id"),
    _of_instance(),
    _one_of("status", "PENDING", "CLAIMED", "DEAD"),
    Index("ix_timers_due", "due_at", "timer_id", postgresql_where=_LIVE_TIMER),  # claims over all partitions
    Index(
        "ix_timers_partition_due",  # claims in chosen partitions
        "partition_id",
        "due_at",
        "timer_id",
        postgresql_where=_LIVE_TIMER,
    ),
    Index("ix_timers_flow_instance", "flow_instance_id"),  # timers of a flow, and the cascade
    Index(
        "ix_timers_dead",  # the list of dead timers
        "due_at",
        "timer_id",
        postgresql_where=text("status = 'DEAD'"),
    ),
    info=_spread_by(
        "flow instance",
        {"fillfactor": "90", "autovacuum_vacuum_scale_factor": "0.01", "autovacuum_analyze_scale_factor": "0.02"},
    ),
)

flow_events = Table(
    "flow_events",
    metadata,
    _partition(),
    _uuid("flow_instance_id"),
    _bigint("sequence"),
    _text("event_type"),
    _json("payload"),
    _instant("recorded_at"),
    # The transaction that wrote the event: a reader of the feed goes no further than the oldest one still
    # running.
    Column("recorded_xid", XID8(), nullable=False, server_default=text("pg_current_xact_id()")),
    PrimaryKeyConstraint("partition_id", "flow_instance_id", "sequence"),
    _of_instance(),
    Index("ix_flow_events_feed", "recorded_xid", "flow_instance_id", "sequence"),  # the feed of all partitions
    Index(
        "ix_flow_events_partition_feed",  # the feed of one partition
        "partition_id",
        "recorded_xid",
        "flow_instance_id",
        "sequence",
    ),
    info=_spread_by("flow instance"),
)


correlations = Table(
    "correlations",
    metadata,
    _partition(),
    _text("correlation_key"),
    _uuid("flow_instance_id"),
    _text("step_id"),
    _integer("flow_partition_id"),
    _text("status"),  # NEW: stored but not matched yet
    _instant("created_at"),
    _instant("expires_at", nullable=True),
    # The delivered event, all of it: an event that is given up becomes the dead letter that it would have
    # been.
    _text("event_id", nullable=True),
    _json("payload", nullable=True),
    _text("mode", nullable=True),
    _instant("published_at", nullable=True),
    _bigint("ordinal", nullable=True),
    _instant("delivered_at", nullable=True),
    _instant("available_at", nullable=True),  # not claimable before
    Column("timed_out", Boolean(), nullable=False, server_default=text("false")),
    Column("attempts", Integer(), nullable=False, server_default=text("0")),
    _text("last_error", nullable=True),
    *_lease(),
    PrimaryKeyConstraint("partition_id", "correlation_key", "flow_instance_id", "step_id"),
    _one_of("status", "NEW", "WAITING", "DELIVERED"),
    Index("ix_correlations_flow_instance", "flow_instance_id"),  # waits of a flow: cancel, and the flow's end
    Index(
        "ix_correlations_delivered",  # claims of deliveries
        "delivered_at",
        "correlation_key",
        "flow_instance_id",
        "step_id",
        postgresql_where=text("status = 'DELIVERED'"),
    ),
    Index(
        "ix_correlations_expiring",  # waits that time out
        "expires_at",
        postgresql_where=text("status IN ('NEW', 'WAITING') AND expires_at IS NOT NULL"),
    ),
    Index("ix_correlations_new", "correlation_key", postgresql_where=text("status = 'NEW'")),  # left by a crash
    info=_spread_by(
        "correlation key",
        {"fillfactor": "80", "autovacuum_vacuum_scale_factor": "0.01", "autovacuum_analyze_scale_factor": "0.02"},
    ),
)

early_events = Table(
    "early_events",
    metadata,
    _partition(),
    _text("correlation_key"),
    _text("event_id"),
    _json("payload"),
    _text("mode"),
    _text("status"),  # NEW: not matched yet; KEPT: waits for a waiter; SEEN: remembered for deduplication; DEAD
    _instant("published_at"),
    _bigint("ordinal"),
    _instant("expires_at"),
    _text("reason", nullable=True),
    PrimaryKeyConstraint("partition_id", "correlation_key", "event_id"),
    _one_of("mode", "first", "fifo", "broadcast"),
    _one_of("status", "NEW", "KEPT", "SEEN", "DEAD"),
    Index("ix_early_events_expiring", "expires_at", postgresql_where=text("status <> 'DEAD'")),  # what to forget
    Index("ix_early_events_new", "correlation_key", postgresql_where=text("status = 'NEW'")),  # left by a crash
    Index(
        "ix_early_events_dead",  # the list of dead letters
        "published_at",
        "correlation_key",
        "event_id",
        postgresql_where=text("status = 'DEAD'"),
    ),
    info=_spread_by("correlation key"),
)


# The uniqueness that partitions of flows cannot give: scope 'business_key:<flow_id>' holds business keys. A
# row lies in the partition of its key.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    _partition(),
    _text("scope"),
    _text("key"),
    _uuid("flow_instance_id", nullable=True),
    _json("result", nullable=True),
    _instant("created_at"),
    _instant("expires_at", nullable=True),
    PrimaryKeyConstraint("partition_id", "scope", "key"),
    Index(
        "ix_idempotency_keys_flow_instance",  # keys of a flow that is removed
        "flow_instance_id",
        postgresql_where=text("flow_instance_id IS NOT NULL"),
    ),
    Index("ix_idempotency_keys_expiring", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    info=_spread_by("key"),
)


workers = Table(
    "workers",
    metadata,
    _partition(),
    _text("replica_set"),
    _text("worker_id"),
    _instant("started_at"),
    _instant("heartbeat_at"),
    _json("metadata"),
    PrimaryKeyConstraint("partition_id", "replica_set", "worker_id"),
    info=_spread_by("worker id"),
)

partition_assignments = Table(
    "partition_assignments",
    metadata,
    _partition(),
    _text("replica_set"),
    _text("owner", nullable=True),
    _bigint("generation"),
    PrimaryKeyConstraint("partition_id", "replica_set"),
    info=_spread_by("partition"),
)

feed_checkpoints = Table(
    "feed_checkpoints",
    metadata,
    _partition(),
    _text("consumer"),
    _text("position"),
    _instant("updated_at"),
    PrimaryKeyConstraint("partition_id", "consumer"),
    info=_spread_by("partition"),
)
