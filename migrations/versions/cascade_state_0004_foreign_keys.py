"""The foreign keys: rows of a flow go with it, and a flow keeps its definition.

Waits, events and keys have none: they lie in the partition of their key, and may be there before any flow is.

Locks: SHARE ROW EXCLUSIVE on both tables of each key, while the rows are checked. Every other revision that
adds one to a table with many rows adds it NOT VALID, and validates in a revision of its own.

Revision ID: cascade_state_0004
Revises: cascade_state_0003
Create Date: 2026-11-24
"""

from __future__ import annotations

from alembic import op

revision = "cascade_state_0004"
down_revision = "cascade_state_0003"
branch_labels = None
depends_on = None

# A distributed engine must not spread one transaction's DDL over parallel connections; others ignore it.
SEQUENTIAL = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"

TABLES_OF_INSTANCES = ("step_results", "component_states", "timers", "flow_events")


def upgrade() -> None:
    op.execute(SEQUENTIAL)
    op.create_foreign_key(
        "fk_flow_instances_flow_definitions",
        "flow_instances",
        "flow_definitions",
        ["flow_id", "flow_version"],
        ["flow_id", "version"],
    )
    for table in TABLES_OF_INSTANCES:
        op.create_foreign_key(
            f"fk_{table}_flow_instances",
            table,
            "flow_instances",
            ["partition_id", "flow_instance_id"],
            ["partition_id", "flow_instance_id"],
            ondelete="CASCADE",
        )


def downgrade() -> None:
    op.execute(SEQUENTIAL)
    for table in reversed(TABLES_OF_INSTANCES):
        op.drop_constraint(f"fk_{table}_flow_instances", table, type_="foreignkey")
    op.drop_constraint("fk_flow_instances_flow_definitions", "flow_instances", type_="foreignkey")
