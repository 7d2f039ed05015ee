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

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from cascade_state.postgres.columns import (
    REFERENCE,
    XID8,
    bigint_column,
    instant_column,
    integer_column,
    interval_column,
    json_column,
    lease_columns,
    metadata,
    one_of,
    partition_column,
    spread_by,
    text_column,
    uuid_column,
    with_instance,
)

__all__ = [
    "component_states",
    "correlations",
    "early_events",
    "feed_checkpoints",
    "feed_consumers",
    "flow_definitions",
    "flow_events",
    "flow_instances",
    "idempotency_keys",
    "lock_tokens",
    "metadata",
    "partition_assignments",
    "partition_targets",
    "replica_sets",
    "settings",
    "step_results",
    "timers",
    "workers",
]


flow_definitions: Table = Table(
    "flow_definitions",
    metadata,
    text_column("flow_id"),
    integer_column("version"),
    text_column("digest"),
    json_column("content"),
    instant_column("deployed_at"),
    instant_column("undeployed_at", nullable=True),  # hidden since; the row stays, because instances refer to it
    PrimaryKeyConstraint("flow_id", "version"),
    info={"distribution": REFERENCE},
)

settings: Table = Table(
    "settings",
    metadata,
    text_column("name"),
    json_column("value"),
    PrimaryKeyConstraint("name"),
    info={"distribution": REFERENCE},
)

_ENDED = ("COMPLETED", "FAILED", "CANCELLED")

flow_instances: Table = Table(
    "flow_instances",
    metadata,
    partition_column(),
    uuid_column("flow_instance_id"),
    uuid_column("root_id"),
    uuid_column("parent_id", nullable=True),
    text_column("flow_id"),
    integer_column("flow_version"),
    text_column("status"),
    text_column("business_key", nullable=True),
    json_column("trigger_data"),
    json_column("error", nullable=True),
    Column("search_attributes", JSONB(), nullable=False, server_default=text("'{}'::jsonb")),
    json_column("waits", nullable=True),  # step id -> correlation key, of the steps that are suspended now
    json_column("pending_timers", nullable=True),  # step id -> timer id, likewise
    bigint_column("version"),
    bigint_column("event_count"),  # the last sequence used in flow_events
    # Grows with each timer that is scheduled without advancing the flow: an advance that ends the flow at
    # the same moment then waits for that row, sees it changed, and removes that timer too.
    bigint_column("timer_changes", default="0"),
    *lease_columns(),
    instant_column("created_at"),
    instant_column("updated_at"),
    instant_column("completed_at", nullable=True),
    PrimaryKeyConstraint("partition_id", "flow_instance_id"),
    ForeignKeyConstraint(["flow_id", "flow_version"], ["flow_definitions.flow_id", "flow_definitions.version"]),
    one_of("status", "INITIALIZING", "RUNNING", "WAITING_FOR_EVENT", "WAITING_FOR_TIMER", *_ENDED),
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
        "ix_flow_instances_partition_status",  # claims in chosen partitions, and those of orphans
        "partition_id",
        "status",
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
    info=spread_by(
        "flow instance",
        {"fillfactor": "80", "autovacuum_vacuum_scale_factor": "0.02", "autovacuum_analyze_scale_factor": "0.05"},
    ),
)

step_results: Table = Table(
    "step_results",
    metadata,
    partition_column(),
    uuid_column("flow_instance_id"),
    text_column("step_id"),
    text_column("status"),
    json_column("outputs"),
    json_column("error", nullable=True),
    integer_column("attempt"),
    instant_column("completed_at"),
    PrimaryKeyConstraint("partition_id", "flow_instance_id", "step_id"),
    with_instance(),
    one_of("status", "COMPLETED", "FAILED"),
    info=spread_by("flow instance"),
)

component_states: Table = Table(
    "component_states",
    metadata,
    partition_column(),
    uuid_column("flow_instance_id"),
    text_column("step_id"),
    json_column("state"),
    bigint_column("version"),
    instant_column("expires_at", nullable=True),
    instant_column("updated_at"),
    PrimaryKeyConstraint("partition_id", "flow_instance_id", "step_id"),
    with_instance(),
    info=spread_by("flow instance"),
)

# Said by a column that a claim leaves alone: were it said by the status, each claim, release and renewal after a
# claim would write an entry into every index, instead of none.
_LIVING_TIMER = text("died_at IS NULL")

timers: Table = Table(
    "timers",
    metadata,
    partition_column(),
    uuid_column("timer_id"),
    uuid_column("flow_instance_id"),
    text_column("step_id"),
    instant_column("due_at"),
    text_column("status"),
    *lease_columns(),
    integer_column("attempts"),
    integer_column("max_attempts"),
    json_column("payload"),
    text_column("last_error", nullable=True),
    instant_column("died_at", nullable=True),
    PrimaryKeyConstraint("partition_id", "timer_id"),
    with_instance(),
    one_of("status", "PENDING", "CLAIMED", "DEAD"),
    # Indexes go by the one, people by the other: a timer on which they differed would be in no list, and never fire.
    CheckConstraint("(status = 'DEAD') = (died_at IS NOT NULL)", name="died_at"),
    Index("ix_timers_due", "due_at", "timer_id", postgresql_where=_LIVING_TIMER),  # claims over all partitions
    Index(
        "ix_timers_partition_due",  # claims in chosen partitions
        "partition_id",
        "due_at",
        "timer_id",
        postgresql_where=_LIVING_TIMER,
    ),
    Index("ix_timers_flow_instance", "flow_instance_id"),  # timers of a flow, and the cascade
    Index(
        "ix_timers_dead",  # the list of dead timers
        "due_at",
        "timer_id",
        postgresql_where=text("died_at IS NOT NULL"),
    ),
    info=spread_by(
        "flow instance",
        {"autovacuum_vacuum_scale_factor": "0.01", "autovacuum_analyze_scale_factor": "0.02", "fillfactor": "45"},
    ),
)

flow_events: Table = Table(
    "flow_events",
    metadata,
    partition_column(),
    uuid_column("flow_instance_id"),
    bigint_column("sequence"),
    text_column("event_type"),
    json_column("payload"),
    instant_column("recorded_at"),
    # The transaction that wrote the event: a reader of the feed goes no further than the oldest one still
    # running.
    Column("recorded_xid", XID8(), nullable=False, server_default=text("pg_current_xact_id()")),
    PrimaryKeyConstraint("partition_id", "flow_instance_id", "sequence"),
    with_instance(),
    Index("ix_flow_events_feed", "recorded_xid", "flow_instance_id", "sequence"),  # the feed of all partitions
    Index(
        "ix_flow_events_partition_feed",  # the feed of one partition
        "partition_id",
        "recorded_xid",
        "flow_instance_id",
        "sequence",
    ),
    info=spread_by("flow instance"),
)


correlations: Table = Table(
    "correlations",
    metadata,
    partition_column(),
    text_column("correlation_key"),
    uuid_column("flow_instance_id"),
    text_column("step_id"),
    integer_column("flow_partition_id"),
    text_column("status"),  # NEW: stored but not matched yet
    instant_column("created_at"),
    instant_column("expires_at", nullable=True),
    # The delivered event, all of it: an event that is given up becomes the dead letter that it would have
    # been.
    text_column("event_id", nullable=True),
    json_column("payload", nullable=True),
    text_column("mode", nullable=True),
    instant_column("published_at", nullable=True),
    bigint_column("ordinal", nullable=True),
    instant_column("delivered_at", nullable=True),
    instant_column("available_at", nullable=True),  # not claimable before
    Column("timed_out", Boolean(), nullable=False, server_default=text("false")),
    Column("attempts", Integer(), nullable=False, server_default=text("0")),
    text_column("last_error", nullable=True),
    *lease_columns(),
    PrimaryKeyConstraint("partition_id", "correlation_key", "flow_instance_id", "step_id"),
    one_of("status", "NEW", "WAITING", "DELIVERED"),
    Index("ix_correlations_flow_instance", "flow_instance_id"),  # waits of a flow: cancel, and the flow's end
    Index(
        "ix_correlations_available",  # claims of deliveries over all partitions
        "available_at",
        "correlation_key",
        "flow_instance_id",
        "step_id",
        postgresql_where=text("status = 'DELIVERED'"),
    ),
    Index(
        "ix_correlations_partition_available",  # claims of deliveries in chosen partitions
        "flow_partition_id",
        "available_at",
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
    info=spread_by(
        "correlation key",
        {"fillfactor": "80", "autovacuum_vacuum_scale_factor": "0.01", "autovacuum_analyze_scale_factor": "0.02"},
    ),
)

early_events: Table = Table(
    "early_events",
    metadata,
    partition_column(),
    text_column("correlation_key"),
    text_column("event_id"),
    json_column("payload"),
    text_column("mode"),
    text_column("status"),  # NEW: not matched yet; KEPT: waits for a waiter; SEEN: remembered for deduplication; DEAD
    instant_column("published_at"),
    bigint_column("ordinal"),
    instant_column("expires_at"),
    text_column("reason", nullable=True),
    PrimaryKeyConstraint("partition_id", "correlation_key", "event_id"),
    one_of("mode", "first", "fifo", "broadcast"),
    one_of("status", "NEW", "KEPT", "SEEN", "DEAD"),
    Index("ix_early_events_expiring", "expires_at", postgresql_where=text("status <> 'DEAD'")),  # what to forget
    Index("ix_early_events_new", "correlation_key", postgresql_where=text("status = 'NEW'")),  # left by a crash
    Index(
        "ix_early_events_dead",  # the list of dead letters
        "published_at",
        "correlation_key",
        "event_id",
        postgresql_where=text("status = 'DEAD'"),
    ),
    info=spread_by("correlation key"),
)


# The uniqueness that partitions of flows cannot give: scope 'business_key:<flow_id>' holds business keys. A
# row lies in the partition of its key.
idempotency_keys: Table = Table(
    "idempotency_keys",
    metadata,
    partition_column(),
    text_column("scope"),
    text_column("key"),
    uuid_column("flow_instance_id", nullable=True),
    json_column("result", nullable=True),
    instant_column("created_at"),
    instant_column("expires_at", nullable=True),
    PrimaryKeyConstraint("partition_id", "scope", "key"),
    Index(
        "ix_idempotency_keys_flow_instance",  # keys of a flow that is removed
        "flow_instance_id",
        postgresql_where=text("flow_instance_id IS NOT NULL"),
    ),
    Index("ix_idempotency_keys_expiring", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    info=spread_by("key"),
)


# Row locks are taken in the order of the next four tables.
replica_sets: Table = Table(
    "replica_sets",
    metadata,
    partition_column(),
    text_column("replica_set"),
    bigint_column("generation"),  # how often its membership changed
    integer_column("worker_count"),  # that the plan was made for
    PrimaryKeyConstraint("partition_id", "replica_set"),
    info=spread_by("replica set"),
)

workers: Table = Table(
    "workers",
    metadata,
    partition_column(),
    text_column("replica_set"),
    text_column("worker_id"),
    instant_column("started_at"),
    instant_column("heartbeat_at"),
    json_column("metadata"),
    interval_column("stale_after", default="'30 seconds'"),  # its own: workers of one set may be told different ones
    PrimaryKeyConstraint("partition_id", "replica_set", "worker_id"),
    # No index mentions heartbeat_at: a heartbeat stays a heap-only update.
    Index("ix_workers_replica_set", "replica_set", "worker_id"),  # the workers of one set; the list of all
    info=spread_by("worker id"),
)

# Who is to own a partition. Apart from its owner, because a handler holds that row while it works: the plan can be
# changed all the same.
partition_targets: Table = Table(
    "partition_targets",
    metadata,
    partition_column(),
    text_column("replica_set"),
    text_column("worker_id", nullable=True),
    PrimaryKeyConstraint("partition_id", "replica_set"),
    Index("ix_partition_targets_worker", "replica_set", "worker_id"),  # what a heartbeat asks for
    info=spread_by("partition"),
)

partition_assignments: Table = Table(
    "partition_assignments",
    metadata,
    partition_column(),
    text_column("replica_set"),
    text_column("owner", nullable=True),
    bigint_column("generation"),
    PrimaryKeyConstraint("partition_id", "replica_set"),
    Index("ix_partition_assignments_owner", "replica_set", "owner"),  # what a heartbeat asks for
    info=spread_by("partition"),
)

feed_consumers: Table = Table(
    "feed_consumers",
    metadata,
    text_column("consumer"),
    text_column("start"),
    # Started "now": the snapshot of what was committed then, because transaction ids alone do not tell. None: from the
    # beginning.
    text_column("start_snapshot", nullable=True),
    instant_column("started_at"),
    instant_column("paused_at", nullable=True),
    PrimaryKeyConstraint("consumer"),
    one_of("start", "beginning", "now"),
    info={"distribution": REFERENCE},
)

feed_checkpoints: Table = Table(
    "feed_checkpoints",
    metadata,
    partition_column(),
    text_column("consumer"),
    # The last event that was handled: a place in flow_events, also when the event itself is gone.
    Column("recorded_xid", XID8(), nullable=False),
    Column("flow_instance_id", Uuid(), nullable=False, server_default=text("'00000000-0000-0000-0000-000000000000'")),
    bigint_column("sequence", default="0"),
    instant_column("updated_at"),
    Column("attempts", Integer(), nullable=False, server_default=text("0")),  # how often the next batch has failed
    text_column("last_error", nullable=True),
    instant_column("failed_at", nullable=True),
    PrimaryKeyConstraint("partition_id", "consumer"),
    info=spread_by("partition", {"fillfactor": "50"}),
)

# One row for each name that was ever locked beyond a transaction; it lies in the partition of the lock's number.
lock_tokens: Table = Table(
    "lock_tokens",
    metadata,
    partition_column(),
    bigint_column("lock_key"),
    text_column("lock_name"),  # as JSON
    bigint_column("token"),  # of its last holder; only grows
    integer_column("backend_pid"),  # of the session that got it, and when
    instant_column("acquired_at"),
    PrimaryKeyConstraint("partition_id", "lock_key"),
    info=spread_by("lock"),
)
