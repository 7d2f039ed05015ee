"""The tables with their primary keys, and the settings that are fixed for ever.

Locks: none but on what it makes.

Revision ID: cascade_state_0001
Revises:
Create Date: 2026-11-24
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType

revision = "cascade_state_0001"
down_revision = None
branch_labels = ("cascade_state",)
depends_on = None

# A distributed engine must not spread one transaction's DDL over parallel connections; others ignore it.
SEQUENTIAL = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"

DEFAULT_PARTITION_COUNT = 256
PARTITION_COUNTS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

TEXT = sa.Text(collation="C")  # orders by code point on every database
INSTANT = sa.DateTime(timezone=True)

# The tables that change most: fillfactor, share of dead rows that starts a vacuum, share of changes that
# starts an analyze. The reasons are in migrations/NOTES.md.
STORAGE = {
    # Room for the next version of a row on its page: storing a step then touches no index.
    "flow_instances": (80, 0.02, 0.05),
    # Queues: rows live for a short time, and a claim must not wade through dead ones.
    "timers": (90, 0.01, 0.02),
    "correlations": (80, 0.01, 0.02),
}

TABLES = (
    "flow_definitions",
    "settings",
    "flow_instances",
    "step_results",
    "component_states",
    "timers",
    "flow_events",
    "correlations",
    "early_events",
    "idempotency_keys",
    "workers",
    "partition_assignments",
    "feed_checkpoints",
)


class XID8(UserDefinedType[int]):
    """A transaction id of 64 bits."""

    def get_col_spec(self, **_: Any) -> str:
        """Returns the name of the type."""
        return "xid8"


def upgrade() -> None:
    op.execute(SEQUENTIAL)
    create_tables()
    for table, (fillfactor, vacuum, analyze) in STORAGE.items():
        op.execute(
            f"ALTER TABLE {table} SET (fillfactor = {fillfactor}, "
            f"autovacuum_vacuum_scale_factor = {vacuum}, autovacuum_analyze_scale_factor = {analyze})"
        )
    settings = sa.table("settings", sa.column("name", TEXT), sa.column("value", sa.JSON()))
    op.execute(settings.insert().values(name="partition_count", value=sa.literal_column(f"'{partition_count()}'")))


def downgrade() -> None:
    op.execute(SEQUENTIAL)
    for table in reversed(TABLES):
        op.drop_table(table)


def partition_count() -> int:
    """Returns how many partitions this installation has, now and for ever."""
    config = op.get_context().config
    attributes = {} if config is None else config.attributes
    given = str(attributes.get("partition_count", DEFAULT_PARTITION_COUNT))
    if given not in map(str, PARTITION_COUNTS):
        raise CommandError("partition_count must be a power of two from 16 to 4096")
    return int(given)


def create_tables() -> None:
    op.create_table(
        "flow_definitions",
        sa.Column("flow_id", TEXT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("deployed_at", INSTANT, nullable=False),
        sa.Column("undeployed_at", INSTANT),
        sa.PrimaryKeyConstraint("flow_id", "version", name="pk_flow_definitions"),
    )
    op.create_table(
        "settings",
        sa.Column("name", TEXT, nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_settings"),
    )
    op.create_table(
        "flow_instances",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("flow_instance_id", sa.Uuid(), nullable=False),
        sa.Column("root_id", sa.Uuid(), nullable=False),
        sa.Column("parent_id", sa.Uuid()),
        sa.Column("flow_id", TEXT, nullable=False),
        sa.Column("flow_version", sa.Integer(), nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("business_key", TEXT),
        sa.Column("trigger_data", sa.JSON(), nullable=False),
        sa.Column("error", sa.JSON()),
        sa.Column("search_attributes", JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("waits", sa.JSON()),
        sa.Column("pending_timers", sa.JSON()),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("event_count", sa.BigInteger(), nullable=False),
        sa.Column("timer_changes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_holder", TEXT),
        sa.Column("lease_token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_expires_at", INSTANT),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("completed_at", INSTANT),
        sa.CheckConstraint(
            "status IN ('INITIALIZING', 'RUNNING', 'WAITING_FOR_EVENT', 'WAITING_FOR_TIMER', "
            "'COMPLETED', 'FAILED', 'CANCELLED')",
            name=op.f("ck_flow_instances_status"),
        ),
        sa.PrimaryKeyConstraint("partition_id", "flow_instance_id", name="pk_flow_instances"),
    )
    op.create_table(
        "step_results",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("flow_instance_id", sa.Uuid(), nullable=False),
        sa.Column("step_id", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("outputs", sa.JSON(), nullable=False),
        sa.Column("error", sa.JSON()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("completed_at", INSTANT, nullable=False),
        sa.CheckConstraint("status IN ('COMPLETED', 'FAILED')", name=op.f("ck_step_results_status")),
        sa.PrimaryKeyConstraint("partition_id", "flow_instance_id", "step_id", name="pk_step_results"),
    )
    op.create_table(
        "component_states",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("flow_instance_id", sa.Uuid(), nullable=False),
        sa.Column("step_id", TEXT, nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", INSTANT),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("partition_id", "flow_instance_id", "step_id", name="pk_component_states"),
    )
    op.create_table(
        "timers",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("timer_id", sa.Uuid(), nullable=False),
        sa.Column("flow_instance_id", sa.Uuid(), nullable=False),
        sa.Column("step_id", TEXT, nullable=False),
        sa.Column("due_at", INSTANT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("lease_holder", TEXT),
        sa.Column("lease_token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_expires_at", INSTANT),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("last_error", TEXT),
        sa.CheckConstraint("status IN ('PENDING', 'CLAIMED', 'DEAD')", name=op.f("ck_timers_status")),
        sa.PrimaryKeyConstraint("partition_id", "timer_id", name="pk_timers"),
    )
    op.create_table(
        "flow_events",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("flow_instance_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("event_type", TEXT, nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("recorded_at", INSTANT, nullable=False),
        sa.Column("recorded_xid", XID8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.PrimaryKeyConstraint("partition_id", "flow_instance_id", "sequence", name="pk_flow_events"),
    )
    op.create_table(
        "correlations",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("correlation_key", TEXT, nullable=False),
        sa.Column("flow_instance_id", sa.Uuid(), nullable=False),
        sa.Column("step_id", TEXT, nullable=False),
        sa.Column("flow_partition_id", sa.Integer(), nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT),
        sa.Column("event_id", TEXT),
        sa.Column("payload", sa.JSON()),
        sa.Column("mode", TEXT),
        sa.Column("published_at", INSTANT),
        sa.Column("ordinal", sa.BigInteger()),
        sa.Column("delivered_at", INSTANT),
        sa.Column("available_at", INSTANT),
        sa.Column("timed_out", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_error", TEXT),
        sa.Column("lease_holder", TEXT),
        sa.Column("lease_token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_expires_at", INSTANT),
        sa.CheckConstraint("status IN ('NEW', 'WAITING', 'DELIVERED')", name=op.f("ck_correlations_status")),
        sa.PrimaryKeyConstraint(
            "partition_id", "correlation_key", "flow_instance_id", "step_id", name="pk_correlations"
        ),
    )
    op.create_table(
        "early_events",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("correlation_key", TEXT, nullable=False),
        sa.Column("event_id", TEXT, nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("mode", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("published_at", INSTANT, nullable=False),
        sa.Column("ordinal", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.Column("reason", TEXT),
        sa.CheckConstraint("mode IN ('first', 'fifo', 'broadcast')", name=op.f("ck_early_events_mode")),
        sa.CheckConstraint("status IN ('NEW', 'KEPT', 'SEEN', 'DEAD')", name=op.f("ck_early_events_status")),
        sa.PrimaryKeyConstraint("partition_id", "correlation_key", "event_id", name="pk_early_events"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("scope", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("flow_instance_id", sa.Uuid()),
        sa.Column("result", sa.JSON()),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT),
        sa.PrimaryKeyConstraint("partition_id", "scope", "key", name="pk_idempotency_keys"),
    )
    op.create_table(
        "workers",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("replica_set", TEXT, nullable=False),
        sa.Column("worker_id", TEXT, nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("heartbeat_at", INSTANT, nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("partition_id", "replica_set", "worker_id", name="pk_workers"),
    )
    op.create_table(
        "partition_assignments",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("replica_set", TEXT, nullable=False),
        sa.Column("owner", TEXT),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("partition_id", "replica_set", name="pk_partition_assignments"),
    )
    op.create_table(
        "feed_checkpoints",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("consumer", TEXT, nullable=False),
        sa.Column("position", TEXT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("partition_id", "consumer", name="pk_feed_checkpoints"),
    )
