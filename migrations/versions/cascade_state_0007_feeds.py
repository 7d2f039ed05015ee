"""Consumers of the feed, and checkpoints that can be compared with events.

Locks: ACCESS EXCLUSIVE on feed_checkpoints for a moment; it is written by nobody before this revision.

Revision ID: cascade_state_0007
Revises: cascade_state_0006
Create Date: 2026-11-25
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "cascade_state_0007"
down_revision = "cascade_state_0006"
branch_labels = None
depends_on = None

# A distributed engine must not spread one transaction's DDL over parallel connections; others ignore it.
SEQUENTIAL = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"
TEXT = sa.Text(collation="C")
INSTANT = sa.DateTime(timezone=True)
NIL = "00000000-0000-0000-0000-000000000000"

REFERENCE_TABLES = ("feed_consumers",)

# Asks the server itself, so that it is right in a script as well (`--sql`).
DISTRIBUTE = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        PERFORM create_reference_table('feed_consumers');
    END IF;
END
$$
"""


def upgrade() -> None:
    op.execute(SEQUENTIAL)
    op.create_table(
        "feed_consumers",
        sa.Column("consumer", TEXT, nullable=False),
        sa.Column("start", TEXT, nullable=False),
        sa.Column("start_snapshot", TEXT),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("paused_at", INSTANT),
        sa.PrimaryKeyConstraint("consumer", name="pk_feed_consumers"),
        sa.CheckConstraint("start IN ('beginning', 'now')", name=op.f("ck_feed_consumers_start")),
    )
    op.execute(DISTRIBUTE)
    # The old text of a position cannot be compared in SQL. Whoever put a row there starts from the beginning.
    op.execute("ALTER TABLE feed_checkpoints ALTER COLUMN position TYPE xid8 USING '0'::text::xid8")
    op.execute("ALTER TABLE feed_checkpoints RENAME COLUMN position TO recorded_xid")
    op.add_column(
        "feed_checkpoints",
        sa.Column("flow_instance_id", sa.Uuid(), server_default=sa.text(f"'{NIL}'"), nullable=False),
    )
    op.add_column(
        "feed_checkpoints", sa.Column("sequence", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column("feed_checkpoints", sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("feed_checkpoints", sa.Column("last_error", TEXT))
    op.add_column("feed_checkpoints", sa.Column("failed_at", INSTANT))
    op.execute("ALTER TABLE feed_checkpoints SET (fillfactor = 50)")


def downgrade() -> None:
    op.execute(SEQUENTIAL)
    op.execute("ALTER TABLE feed_checkpoints RESET (fillfactor)")
    for column in ("failed_at", "last_error", "attempts", "sequence", "flow_instance_id"):
        op.drop_column("feed_checkpoints", column)
    op.execute("ALTER TABLE feed_checkpoints RENAME COLUMN recorded_xid TO position")
    op.execute('ALTER TABLE feed_checkpoints ALTER COLUMN position TYPE text COLLATE "C" USING position::text')
    op.drop_table("feed_consumers")
