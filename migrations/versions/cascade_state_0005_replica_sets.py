"""Replica sets: the sets themselves, and who is to own which partition.

Locks: ACCESS EXCLUSIVE on workers for a moment; SHARE on workers and partition_assignments while their indexes are
built (see migrations/NOTES.md for why not CONCURRENTLY).

Revision ID: cascade_state_0005
Revises: cascade_state_0004
Create Date: 2026-11-25
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "cascade_state_0005"
down_revision = "cascade_state_0004"
branch_labels = None
depends_on = None

# A distributed engine must not spread one transaction's DDL over parallel connections; others ignore it.
SEQUENTIAL = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"
TEXT = sa.Text(collation="C")

DISTRIBUTED_TABLES = ("replica_sets", "partition_targets")

# Asks the server itself, so that it is right in a script as well (`--sql`).
DISTRIBUTE = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        PERFORM create_distributed_table('{table}', 'partition_id', colocate_with => 'flow_instances');
    END IF;
END
$$
"""


def upgrade() -> None:
    op.execute(SEQUENTIAL)
    op.create_table(
        "replica_sets",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("replica_set", TEXT, nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("worker_count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("partition_id", "replica_set", name="pk_replica_sets"),
    )
    op.create_table(
        "partition_targets",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("replica_set", TEXT, nullable=False),
        sa.Column("worker_id", TEXT),
        sa.PrimaryKeyConstraint("partition_id", "replica_set", name="pk_partition_targets"),
    )
    for table in DISTRIBUTED_TABLES:
        op.execute(DISTRIBUTE.format(table=table))
    op.add_column(
        "workers",
        sa.Column("stale_after", sa.Interval(), server_default=sa.text("'30 seconds'"), nullable=False),
    )
    op.create_index("ix_workers_replica_set", "workers", ["replica_set", "worker_id"])
    op.create_index("ix_partition_targets_worker", "partition_targets", ["replica_set", "worker_id"])
    op.create_index("ix_partition_assignments_owner", "partition_assignments", ["replica_set", "owner"])


def downgrade() -> None:
    op.execute(SEQUENTIAL)
    op.drop_index("ix_partition_assignments_owner", table_name="partition_assignments")
    op.drop_index("ix_partition_targets_worker", table_name="partition_targets")
    op.drop_index("ix_workers_replica_set", table_name="workers")
    op.drop_column("workers", "stale_after")
    op.drop_table("partition_targets")
    op.drop_table("replica_sets")
