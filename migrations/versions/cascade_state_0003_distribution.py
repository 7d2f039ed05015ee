"""Spreads the tables over the nodes of a Citus cluster; does nothing on a server without that extension.

It comes between the tables and their foreign keys, because a key from a table that is not distributed yet
is refused.

Locks: ACCESS EXCLUSIVE on the tables, while their rows (if any) move; on one server none.

Revision ID: cascade_state_0003
Revises: cascade_state_0002
Create Date: 2026-11-24
"""

from __future__ import annotations

from alembic import op

revision = "cascade_state_0003"
down_revision = "cascade_state_0002"
branch_labels = None
depends_on = None

# A distributed engine must not spread one transaction's DDL over parallel connections; others ignore it.
SEQUENTIAL = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"

# Copied to every node, then split by partition; flow_instances leads the group that the others lie beside.
REFERENCE_TABLES = ("flow_definitions", "settings")
DISTRIBUTED_TABLES = (
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

# One statement each, which asks the server itself, so that it is right in a script as well (`--sql`). The
# catalogue of the extension is only looked at where the extension is.
ON_CITUS = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        IF {negation} EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = '{table}'::regclass) THEN
            PERFORM {call};
        END IF;
    END IF;
END
$$
"""


def upgrade() -> None:
    op.execute(SEQUENTIAL)
    for table in REFERENCE_TABLES:
        on_citus(table, f"create_reference_table('{table}')", distributed=False)
    for table in DISTRIBUTED_TABLES:
        beside = "" if table == "flow_instances" else ", colocate_with => 'flow_instances'"
        on_citus(table, f"create_distributed_table('{table}', 'partition_id'{beside})", distributed=False)


def downgrade() -> None:
    op.execute(SEQUENTIAL)
    for table in reversed(REFERENCE_TABLES + DISTRIBUTED_TABLES):
        on_citus(table, f"undistribute_table('{table}')", distributed=True)


def on_citus(table: str, call: str, *, distributed: bool) -> None:
    """Runs a call of the extension for a table that is, or is not, distributed already."""
    op.execute(ON_CITUS.format(table=table, call=call, negation="" if distributed else "NOT"))
