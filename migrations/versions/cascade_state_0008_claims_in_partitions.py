"""Indexes for claims in chosen partitions; deliveries are claimed in the order in which they become available.

Locks: none that anybody waits for; each index is made CONCURRENTLY. An upgrade that was interrupted may be run again.

Revision ID: cascade_state_0008
Revises: cascade_state_0007
Create Date: 2026-11-25
"""

from __future__ import annotations

from alembic import op

revision = "cascade_state_0008"
down_revision = "cascade_state_0007"
branch_labels = None
depends_on = None

DELIVERED = "(delivered_at, correlation_key, flow_instance_id, step_id) WHERE status = 'DELIVERED'"
AVAILABLE = "available_at, correlation_key, flow_instance_id, step_id"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_flow_instances_partition_status")
        op.execute(
            "CREATE INDEX CONCURRENTLY ix_flow_instances_partition_status ON flow_instances "
            "(partition_id, status, created_at, flow_instance_id) WHERE completed_at IS NULL"
        )
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_correlations_available")
        op.execute(
            f"CREATE INDEX CONCURRENTLY ix_correlations_available ON correlations ({AVAILABLE}) "
            "WHERE status = 'DELIVERED'"
        )
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_correlations_partition_available")
        op.execute(
            "CREATE INDEX CONCURRENTLY ix_correlations_partition_available ON correlations "
            f"(flow_partition_id, {AVAILABLE}) WHERE status = 'DELIVERED'"
        )
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_correlations_delivered")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_correlations_delivered")
        op.execute(f"CREATE INDEX CONCURRENTLY ix_correlations_delivered ON correlations {DELIVERED}")
        for index in (
            "ix_correlations_partition_available",
            "ix_correlations_available",
            "ix_flow_instances_partition_status",
        ):
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}")
