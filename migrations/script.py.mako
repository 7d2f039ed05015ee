"""${message}.

Locks: which ones this takes, and why that is bearable.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Create Date: ${create_date}
"""

from alembic import op
import sqlalchemy as sa
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}

# A distributed engine must not spread one transaction's DDL over parallel connections; others ignore it.
SEQUENTIAL = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"


def upgrade() -> None:
    op.execute(SEQUENTIAL)
    ${upgrades if upgrades else ""}


def downgrade() -> None:
    op.execute(SEQUENTIAL)
    ${downgrades if downgrades else ""}
