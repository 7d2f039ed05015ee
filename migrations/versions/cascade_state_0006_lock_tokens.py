"""The table of fencing tokens: how often each advisory lock was acquired beyond a transaction.

Locks: none but on what it makes.

Revision ID: cascade_state_0006
Revises: cascade_state_0005
Create Date: 2026-11-25
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "cascade_state_0006"
down_revision = "cascade_state_0005"
branch_labels = None
depends_on = None

# A distributed engine must not spread one transaction's DDL over parallel connections; others ignore it.
SEQUENTIAL = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"

DISTRIBUTED_TABLES = ("lock_tokens",)

# As in cascade_state_0003: it asks the server itself, so that it is right in a script as well.
DISTRIBUTE = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        PERFORM create_distributed_table('lock_tokens', 'partition_id', colocate_with => 'flow_instances');
    END IF;
END
$$
"""


def upgrade() -> None:
    op.execute(SEQUENTIAL)
    op.create_table(
        "lock_tokens",
        sa.Column("partition_id", sa.Integer(), nullable=False),
        sa.Column("lock_key", sa.BigInteger(), nullable=False),
        sa.Column("lock_name", sa.Text(collation="C"), nullable=False),  # orders by code point on every database
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("backend_pid", sa.Integer(), nullable=False),
        sa.Column("acquired_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("partition_id", "lock_key", name="pk_lock_tokens"),
    )
    op.execute(DISTRIBUTE)


def downgrade() -> None:
    op.execute(SEQUENTIAL)
    op.drop_table("lock_tokens")
