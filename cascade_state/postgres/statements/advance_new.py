"""The part of an advance that inserts flows, instead of updating them, and takes their business keys."""

from __future__ import annotations

from sqlalchemy import CTE, and_, case, exists, literal_column, or_, select
from sqlalchemy.dialects.postgresql import insert

from cascade_state.postgres.statements.parameters import BIGINT, NOW
from cascade_state.postgres.tables import flow_definitions, flow_instances, idempotency_keys

__all__ = ["inserted_flows"]


def inserted_flows(ready: CTE) -> CTE:
    """Inserts flows whose id is free, whose definition is deployed, and whose business key (if any) was free."""
    definitions = (
        select(flow_definitions.c.flow_id, flow_definitions.c.version)
        .where(
            exists().where(
                ready.c.flow_id == flow_definitions.c.flow_id,
                ready.c.flow_version == flow_definitions.c.version,
            ),
            flow_definitions.c.undeployed_at.is_(None),
        )
        # The lock that the foreign key takes anyway, early: an undeployment under way is waited for and
        # then seen.
        .with_for_update(key_share=True, read=True)
        .cte("definitions")
    )
    stored = flow_instances.alias("stored")
    free = (
        select(ready)
        .join_from(
            ready,
            definitions,
            and_(definitions.c.flow_id == ready.c.flow_id, definitions.c.version == ready.c.flow_version),
        )
        .where(
            ~exists().where(
                stored.c.partition_id == ready.c.partition_id,
                stored.c.flow_instance_id == ready.c.flow_instance_id,
            )
        )
        .cte("free")
    )
    keys = _taken_keys(free)
    has_key = exists().where(
        keys.c.scope == free.c.key_scope,
        keys.c.key == free.c.business_key,
        keys.c.flow_instance_id == free.c.flow_instance_id,
    )
    now = NOW
    chosen = select(
        free.c.partition_id,
        free.c.flow_instance_id,
        free.c.root_id,
        free.c.parent_id,
        free.c.flow_id,
        free.c.flow_version,
        free.c.status,
        free.c.business_key,
        free.c.trigger_data,
        free.c.error,
        free.c.search_attributes,
        free.c.waits,
        free.c.pending_timers,
        literal_column("CAST(1 AS BIGINT)", BIGINT).label("version"),
        free.c.event_count,
        now.label("created_at"),
        now.label("updated_at"),
        case((free.c.terminal, now), else_=None).label("completed_at"),
    ).where(or_(free.c.business_key.is_(None), has_key))
    inserted = (
        insert(flow_instances)
        .from_select([column.name for column in chosen.selected_columns], chosen)
        .on_conflict_do_nothing(index_elements=["partition_id", "flow_instance_id"])
        .returning(flow_instances.c.flow_instance_id, flow_instances.c.created_at)
        .cte("inserted")
    )
    return (
        select(
            ready.c.item,
            ready.c.terminal,
            ready.c.partition_id,
            ready.c.flow_instance_id,
            literal_column("CAST(1 AS BIGINT)", BIGINT).label("version"),
            literal_column("CAST(0 AS BIGINT)", BIGINT).label("event_base"),
            inserted.c.created_at.label("written_at"),
        )
        .join_from(inserted, ready, ready.c.flow_instance_id == inserted.c.flow_instance_id)
        .cte("advanced")
    )


def _taken_keys(free: CTE) -> CTE:
    """Takes the business keys that are free; of two flows in one batch, the first one gets it."""
    wanted = (
        select(
            free.c.key_partition_id.label("partition_id"),
            free.c.key_scope.label("scope"),
            free.c.business_key.label("key"),
            free.c.flow_instance_id,
            NOW.label("created_at"),
        )
        .where(free.c.business_key.is_not(None))
        .order_by(free.c.item)
    )
    return (
        insert(idempotency_keys)
        .from_select([column.name for column in wanted.selected_columns], wanted)
        .on_conflict_do_nothing(index_elements=["partition_id", "scope", "key"])
        .returning(idempotency_keys.c.scope, idempotency_keys.c.key, idempotency_keys.c.flow_instance_id)
        .cte("taken_keys")
    )
