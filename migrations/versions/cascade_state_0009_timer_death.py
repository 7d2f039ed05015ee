"""The instant at which a timer died: the indexes of timers go by it, so that a claim writes none of them.

Locks: ACCESS EXCLUSIVE on `timers` until the end of the transaction; see migrations/NOTES.md.

Revision ID: cascade_state_0009
Revises: cascade_state_0008
Create Date: 2026-11-25
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "cascade_state_0009"
down_revision = "cascade_state_0008"
branch_labels = None
depends_on = None

# A distributed engine must not spread one transaction's DDL over parallel connections; others ignore it.
SEQUENTIAL = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"

LIVING_BEFORE = "status IN ('PENDING', 'CLAIMED')"
DEAD_BEFORE = "status = 'DEAD'"
LIVING = "died_at IS NULL"
DEAD = "died_at IS NOT NULL"


def upgrade() -> None:
    op.execute(SEQUENTIAL)
    op.add_column("timers", sa.Column("died_at", sa.DateTime(timezone=True), nullable=True))
    _drop_indexes()
    op.execute("UPDATE timers SET died_at = now() WHERE status = 'DEAD'")
    # Distributed tables take a column and a check of it in two statements.
    op.create_check_constraint(op.f("ck_timers_died_at"), "timers", "(status = 'DEAD') = (died_at IS NOT NULL)")
    op.execute("ALTER TABLE timers SET (fillfactor = 45)")
    _create_indexes(LIVING, DEAD)


def downgrade() -> None:
    op.execute(SEQUENTIAL)
    _drop_indexes()
    op.execute("ALTER TABLE timers SET (fillfactor = 90)")
    op.drop_constraint(op.f("ck_timers_died_at"), "timers", type_="check")
    op.drop_column("timers", "died_at")
    _create_indexes(LIVING_BEFORE, DEAD_BEFORE)


def _drop_indexes() -> None:
    for name in ("ix_timers_dead", "ix_timers_partition_due", "ix_timers_due"):
        op.drop_index(name, table_name="timers")


def _create_indexes(living: str, dead: str) -> None:
    op.create_index("ix_timers_due", "timers", ["due_at", "timer_id"], postgresql_where=sa.text(living))
    op.create_index(
        "ix_timers_partition_due",
        "timers",
        ["partition_id", "due_at", "timer_id"],
        postgresql_where=sa.text(living),
    )
    op.create_index("ix_timers_dead", "timers", ["due_at", "timer_id"], postgresql_where=sa.text(dead))
