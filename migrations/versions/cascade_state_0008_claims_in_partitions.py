"""Indexes for claims in chosen partitions; deliveries are claimed in the order in which they become available.

Locks: SHARE on `flow_instances` and `correlations` while their indexes are built; see migrations/NOTES.md.

Revision ID: cascade_state_0008
Revises: cascade_state_0007
Create Date: 2026-11-25
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "cascade_state_0008"
down_revision = "cascade_state_0007"
branch_labels = None
depends_on = None

# A distributed engine must not spread one transaction's DDL over parallel connections; others ignore it.
SEQUENTIAL = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"


def upgrade() -> None:
    op.execute(SEQUENTIAL)
    op.create_index(
        "ix_flow_instances_partition_status",
        "flow_instances",
        ["partition_id", "status", "created_at", "flow_instance_id"],
        postgresql_where=sa.text("completed_at IS NULL"),
    )
    op.create_index(
        "ix_correlations_available",
        "correlations",
        ["available_at", "correlation_key", "flow_instance_id", "step_id"],
        postgresql_where=sa.text("status = 'DELIVERED'"),
    )
    op.create_index(
        "ix_correlations_partition_available",
        "correlations",
        ["flow_partition_id", "available_at", "correlation_key", "flow_instance_id", "step_id"],
        postgresql_where=sa.text("status = 'DELIVERED'"),
    )
    op.drop_index("ix_correlations_delivered", table_name="correlations")


def downgrade() -> None:
    op.execute(SEQUENTIAL)
    op.create_index(
        "ix_correlations_delivered",
        "correlations",
        ["delivered_at", "correlation_key", "flow_instance_id", "step_id"],
        postgresql_where=sa.text("status = 'DELIVERED'"),
    )
    op.drop_index("ix_correlations_partition_available", table_name="correlations")
    op.drop_index("ix_correlations_available", table_name="correlations")
    op.drop_index("ix_flow_instances_partition_status", table_name="flow_instances")
