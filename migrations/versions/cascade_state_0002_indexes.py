"""The indexes; `cascade_state/postgres/tables.py` says what each one serves.

Locks: SHARE on each table while its index is built. The tables were made a moment ago by the revision
before, so there is nothing to build and nobody to wait; an index that comes later is made CONCURRENTLY (see
migrations/NOTES.md).

Revision ID: cascade_state_0002
Revises: cascade_state_0001
Create Date: 2026-11-24
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "cascade_state_0002"
down_revision = "cascade_state_0001"
branch_labels = None
depends_on = None

# A distributed engine must not spread one transaction's DDL over parallel connections; others ignore it.
SEQUENTIAL = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"


def upgrade() -> None:
    op.execute(SEQUENTIAL)
    op.create_index(
        "ix_flow_instances_business_key",
        "flow_instances",
        ["business_key", "flow_id"],
        postgresql_where=sa.text("business_key IS NOT NULL"),
    )
    op.create_index(
        "ix_flow_instances_completed",
        "flow_instances",
        ["completed_at", "flow_instance_id"],
        postgresql_where=sa.text("completed_at IS NOT NULL"),
    )
    op.create_index("ix_flow_instances_created", "flow_instances", ["created_at", "flow_instance_id"])
    op.create_index("ix_flow_instances_flow", "flow_instances", ["flow_id", "created_at", "flow_instance_id"])
    op.create_index(
        "ix_flow_instances_live",
        "flow_instances",
        ["created_at", "flow_instance_id"],
        postgresql_where=sa.text("completed_at IS NULL"),
    )
    op.create_index(
        "ix_flow_instances_parent",
        "flow_instances",
        ["parent_id"],
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index("ix_flow_instances_root", "flow_instances", ["root_id"])
    op.create_index(
        "ix_flow_instances_search_attributes",
        "flow_instances",
        ["search_attributes"],
        postgresql_using="gin",
        postgresql_ops={"search_attributes": "jsonb_path_ops"},
    )
    op.create_index("ix_flow_instances_status", "flow_instances", ["status", "created_at", "flow_instance_id"])
    op.create_index("ix_timers_dead", "timers", ["due_at", "timer_id"], postgresql_where=sa.text("status = 'DEAD'"))
    op.create_index(
        "ix_timers_due",
        "timers",
        ["due_at", "timer_id"],
        postgresql_where=sa.text("status IN ('PENDING', 'CLAIMED')"),
    )
    op.create_index("ix_timers_flow_instance", "timers", ["flow_instance_id"])
    op.create_index(
        "ix_timers_partition_due",
        "timers",
        ["partition_id", "due_at", "timer_id"],
        postgresql_where=sa.text("status IN ('PENDING', 'CLAIMED')"),
    )
    op.create_index("ix_flow_events_feed", "flow_events", ["recorded_xid", "flow_instance_id", "sequence"])
    op.create_index(
        "ix_flow_events_partition_feed",
        "flow_events",
        ["partition_id", "recorded_xid", "flow_instance_id", "sequence"],
    )
    op.create_index(
        "ix_correlations_delivered",
        "correlations",
        ["delivered_at", "correlation_key", "flow_instance_id", "step_id"],
        postgresql_where=sa.text("status = 'DELIVERED'"),
    )
    op.create_index(
        "ix_correlations_expiring",
        "correlations",
        ["expires_at"],
        postgresql_where=sa.text("status IN ('NEW', 'WAITING') AND expires_at IS NOT NULL"),
    )
    op.create_index("ix_correlations_flow_instance", "correlations", ["flow_instance_id"])
    op.create_index(
        "ix_correlations_new", "correlations", ["correlation_key"], postgresql_where=sa.text("status = 'NEW'")
    )
    op.create_index(
        "ix_early_events_dead",
        "early_events",
        ["published_at", "correlation_key", "event_id"],
        postgresql_where=sa.text("status = 'DEAD'"),
    )
    op.create_index(
        "ix_early_events_expiring",
        "early_events",
        ["expires_at"],
        postgresql_where=sa.text("status <> 'DEAD'"),
    )
    op.create_index(
        "ix_early_events_new", "early_events", ["correlation_key"], postgresql_where=sa.text("status = 'NEW'")
    )
    op.create_index(
        "ix_idempotency_keys_expiring",
        "idempotency_keys",
        ["expires_at"],
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )
    op.create_index(
        "ix_idempotency_keys_flow_instance",
        "idempotency_keys",
        ["flow_instance_id"],
        postgresql_where=sa.text("flow_instance_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.execute(SEQUENTIAL)
    op.drop_index("ix_idempotency_keys_flow_instance", table_name="idempotency_keys")
    op.drop_index("ix_idempotency_keys_expiring", table_name="idempotency_keys")
    op.drop_index("ix_early_events_new", table_name="early_events")
    op.drop_index("ix_early_events_expiring", table_name="early_events")
    op.drop_index("ix_early_events_dead", table_name="early_events")
    op.drop_index("ix_correlations_new", table_name="correlations")
    op.drop_index("ix_correlations_flow_instance", table_name="correlations")
    op.drop_index("ix_correlations_expiring", table_name="correlations")
    op.drop_index("ix_correlations_delivered", table_name="correlations")
    op.drop_index("ix_flow_events_partition_feed", table_name="flow_events")
    op.drop_index("ix_flow_events_feed", table_name="flow_events")
    op.drop_index("ix_timers_partition_due", table_name="timers")
    op.drop_index("ix_timers_flow_instance", table_name="timers")
    op.drop_index("ix_timers_due", table_name="timers")
    op.drop_index("ix_timers_dead", table_name="timers")
    op.drop_index("ix_flow_instances_status", table_name="flow_instances")
    op.drop_index("ix_flow_instances_search_attributes", table_name="flow_instances")
    op.drop_index("ix_flow_instances_root", table_name="flow_instances")
    op.drop_index("ix_flow_instances_parent", table_name="flow_instances")
    op.drop_index("ix_flow_instances_live", table_name="flow_instances")
    op.drop_index("ix_flow_instances_flow", table_name="flow_instances")
    op.drop_index("ix_flow_instances_created", table_name="flow_instances")
    op.drop_index("ix_flow_instances_completed", table_name="flow_instances")
    op.drop_index("ix_flow_instances_business_key", table_name="flow_instances")
