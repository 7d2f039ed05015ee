"""Statements about flow instances other than the advance: reading, listing, claiming, removing."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import cache, partial
from itertools import product
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    ColumnElement,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by

from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_status import TERMINAL_STATUSES, FlowStatus
from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.events import event_columns
from cascade_state.postgres.statements.parameters import (
    BIGINT,
    INSTANT,
    INTEGER,
    INTERVAL,
    JSONB_DOCUMENT,
    NOW,
    TEXT,
    UUID_VALUE,
    columns,
    looked_up,
    param,
    relation,
    scalars,
)
from cascade_state.postgres.tables import (
    correlations,
    flow_definitions,
    flow_events,
    flow_instances,
    idempotency_keys,
    step_results,
)

__all__ = [
    "DIAGNOSE",
    "DIAGNOSE_NEW",
    "FIND_BY_BUSINESS_KEY",
    "FIND_MANY",
    "FIND_ONE",
    "FREE_KEY",
    "HISTORY",
    "IDENTITY_COLUMNS",
    "RELEASE",
    "RENEW",
    "RENEW_FREE",
    "claim_in_statement",
    "claim_in_values",
    "claim_statement",
    "count_statement",
    "filter_shape",
    "filter_values",
    "find_by_correlation_statement",
    "list_statement",
]

flow: Table = flow_instances


def instance_columns(source: Any = flow) -> tuple[ColumnElement[Any], ...]:
    """The columns that make a flow instance; documents as text, so that no connection's codec decides how they read."""
    results = step_results
    # One row for each finished step, as a JSON array of arrays: documents inside stay verbatim.
    gathered = (
        select(
            func.json_agg(
                aggregate_order_by(
                    func.json_build_array(
                        results.c.step_id,
                        results.c.status,
                        results.c.outputs,
                        results.c.error,
                        results.c.attempt,
                        results.c.completed_at,
                    ),
                    results.c.completed_at,
                    results.c.step_id,
                )
            )
        )
        .where(
            results.c.partition_id == source.c.partition_id,
            results.c.flow_instance_id == source.c.flow_instance_id,
        )
        .correlate(source)
        .scalar_subquery()
    )
    return (
        source.c.flow_instance_id,
        source.c.root_id,
        source.c.parent_id,
        source.c.flow_id,
        source.c.flow_version,
        source.c.status,
        source.c.business_key,
        cast(source.c.trigger_data, Text).label("trigger_data"),
        cast(source.c.error, Text).label("error"),
        cast(source.c.search_attributes, Text).label("search_attributes"),
        cast(source.c.waits, Text).label("waits"),
        cast(source.c.pending_timers, Text).label("pending_timers"),
        source.c.version,
        source.c.lease_holder,
        source.c.lease_token,
        source.c.lease_expires_at,
        source.c.created_at,
        source.c.updated_at,
        source.c.completed_at,
        cast(gathered, Text).label("results"),
    )


# Finding

IDENTITY_COLUMNS = {"partition_id": INTEGER, "flow_instance_id": UUID_VALUE}


def _same_flow(left: Any, right: Any) -> ColumnElement[bool]:
    return and_(left.c.partition_id == right.c.partition_id, left.c.flow_instance_id == right.c.flow_instance_id)


def _find(query: Select[Any]) -> Select[Any]:
    wanted = query.subquery("wanted")
    return select(wanted.c.item, *instance_columns()).join_from(wanted, flow, _same_flow(flow, wanted))


FIND_ONE = Statement("flow_instances.find.one", lambda: _find(scalars("wanted", IDENTITY_COLUMNS)))
FIND_MANY = Statement(
    "flow_instances.find.batch", lambda: _find(relation("wanted", {"item": INTEGER, **IDENTITY_COLUMNS}))
)

FIND_BY_BUSINESS_KEY = Statement(
    "flow_instances.find_by_business_key",
    lambda: select(*instance_columns()).where(
        flow.c.flow_id == param("flow_id", TEXT), flow.c.business_key == param("business_key", TEXT)
    ),
)


def _find_by_correlation(continued: bool) -> Select[Any]:
    waiting = (
        select(correlations.c.flow_partition_id.label("partition_id"), correlations.c.flow_instance_id)
        .where(
            correlations.c.partition_id == param("partition_id", INTEGER),
            correlations.c.correlation_key == param("correlation_key", TEXT),
        )
        .distinct()
        .cte("waiting")
    )
    return _page(select(*instance_columns()).join_from(waiting, flow, _same_flow(flow, waiting)), continued=continued)


def _page(query: Select[Any], *, continued: bool) -> Select[Any]:
    """Orders by (created_at, id) and limits; `continued` goes on behind (`after_at`, `after_id`)."""
    if continued:
        after = tuple_(param("after_at", INSTANT), param("after_id", UUID_VALUE))
        query = query.where(tuple_(flow.c.created_at, flow.c.flow_instance_id) > after)
    return query.order_by(flow.c.created_at, flow.c.flow_instance_id).limit(param("limit", BIGINT))


@cache
def find_by_correlation_statement(*, continued: bool) -> Statement:
    """Returns the statement that finds the flows that wait for a key, or have a delivery of it."""
    return Statement("flow_instances.find_by_correlation", lambda: _find_by_correlation(continued))


# Filters


def filter_values(chosen: FlowInstanceFilter) -> dict[str, Any]:
    """Returns the values of a filter's conditions."""
    values: dict[str, Any] = {
        item.name: getattr(chosen, item.name) for item in fields(chosen) if getattr(chosen, item.name) is not None
    }
    if chosen.statuses is not None:
        values["statuses"] = [status.value for status in chosen.statuses]
    return values


def filter_shape(chosen: FlowInstanceFilter) -> frozenset[str]:
    """Returns the names of the fields that a filter sets; they decide the text of its statement."""
    return frozenset(filter_values(chosen))


def _conditions(shape: frozenset[str]) -> list[ColumnElement[bool]]:
    offered: dict[str, Callable[[], ColumnElement[bool]]] = {
        "flow_id": lambda: flow.c.flow_id == param("flow_id", TEXT),
        "flow_version": lambda: flow.c.flow_version == param("flow_version", INTEGER),
        "statuses": lambda: flow.c.status == func.any(bindparam("statuses", type_=ARRAY(Text))),
        "parent_id": lambda: flow.c.parent_id == param("parent_id", UUID_VALUE),
        "business_key_prefix": lambda: and_(
            flow.c.business_key >= param("business_key_prefix", TEXT),  # lets the index begin at the prefix
            func.starts_with(flow.c.business_key, param("business_key_prefix", TEXT)),
        ),
        "search_text": lambda: flow.c.search_attributes.op("@>")(param("search_text", JSONB_DOCUMENT)),
    }
    for name in ("created", "updated", "completed"):
        column = flow.c[f"{name}_at"]
        offered[f"{name}_from"] = partial(operator.ge, column, param(f"{name}_from", INSTANT))
        offered[f"{name}_to"] = partial(operator.lt, column, param(f"{name}_to", INSTANT))
    return [condition() for name, condition in offered.items() if name in shape]


@cache
def list_statement(shape: frozenset[str], *, continued: bool) -> Statement:
    """Returns the statement of one page, from the start or behind (`after_at`, `after_id`)."""
    return Statement(
        "flow_instances.list_page",
        lambda: _page(select(*instance_columns()).where(*_conditions(shape)), continued=continued),
    )


@cache
def count_statement(shape: frozenset[str]) -> Statement:
    """Returns the statement that counts."""
    return Statement(
        "flow_instances.count",
        lambda: select(func.count().label("total")).select_from(flow).where(*_conditions(shape)),
    )


# Leases


def _free() -> ColumnElement[bool]:
    """Flows that have not ended and are held by nobody; the boundary instant of a lease counts as expired."""
    return and_(
        flow.c.completed_at.is_(None),
        or_(flow.c.lease_holder.is_(None), flow.c.lease_expires_at <= NOW),
    )


_LIVE = tuple(status for status in FlowStatus if status not in TERMINAL_STATUSES)
_PLACE_COLUMNS = {"partition_id": INTEGER, "status": TEXT}


def claim_in_values(chosen: FlowInstanceFilter, partitions: Iterable[int]) -> dict[str, Any]:
    """Returns the values of a filter's conditions, and of the places to claim in: partitions by statuses."""
    values = filter_values(chosen)
    statuses = values.pop("statuses", _LIVE)
    return values | columns("place", tuple(_PLACE_COLUMNS), product(sorted(partitions), statuses))


@cache
def claim_in_statement(shape: frozenset[str], *, orphans: bool) -> Statement:
    """Returns the statement that claims free flows in chosen partitions, or only those whose holder vanished."""
    name = "flow_instances.claim.orphans" if orphans else "flow_instances.claim.partitions"
    return Statement(name, lambda: _claim_in(shape - {"statuses"}, orphans))


def _claim_in(shape: frozenset[str], orphans: bool) -> Select[Any]:
    """Goes from place to place until there are enough, first to the one with the oldest flow."""
    places = relation("place", _PLACE_COLUMNS).subquery("places")
    order = (flow.c.created_at, flow.c.flow_instance_id)

    def free(place: Any, *entities: Any) -> Select[Any]:
        query = select(*entities).where(
            flow.c.partition_id == place.c.partition_id,
            flow.c.status == place.c.status,
            _free(),
            *_conditions(shape),
        )
        return (query.where(flow.c.lease_holder.is_not(None)) if orphans else query).order_by(*order)

    always: ColumnElement[bool] = literal_column("true")
    first = free(places, *order).limit(literal_column("1", INTEGER)).lateral("first")
    ordered = (
        select(places)
        .join_from(places, first, always)
        .order_by(first.c.created_at, first.c.flow_instance_id)
        .subquery("ordered")
    )
    taken = (
        free(ordered, flow.c.partition_id, flow.c.flow_instance_id)
        .limit(param("limit", BIGINT))
        .with_for_update(skip_locked=True, key_share=True)
        .lateral("taken")
    )
    return _claimed(select(taken).join_from(ordered, taken, always).limit(param("limit", BIGINT)).cte("free"))


@cache
def claim_statement(shape: frozenset[str]) -> Statement:
    """Returns the statement that claims free flows, oldest first."""
    return Statement("flow_instances.claim", lambda: _claim(shape))


def _claim(shape: frozenset[str]) -> Select[Any]:
    free = (
        select(flow.c.partition_id, flow.c.flow_instance_id)
        .where(_free(), *_conditions(shape))
        .order_by(flow.c.created_at, flow.c.flow_instance_id)
        .limit(param("limit", BIGINT))
        .with_for_update(skip_locked=True, key_share=True)
        .cte("free")
    )
    return _claimed(free)


def _claimed(free: CTE) -> Select[Any]:
    claimed = (
        update(flow)
        .where(_same_flow(flow, looked_up(free, IDENTITY_COLUMNS, "chosen")))
        .values(
            lease_holder=param("holder", TEXT),
            lease_token=flow.c.lease_token + 1,
            lease_expires_at=NOW + param("lease_duration", INTERVAL),
        )
        .returning(*flow.c)
        .cte("claimed")
    )
    return select(*instance_columns(claimed)).order_by(claimed.c.created_at, claimed.c.flow_instance_id)


_HELD_COLUMNS = {**IDENTITY_COLUMNS, "token": BIGINT}


def _held(given: Any) -> ColumnElement[bool]:
    return and_(_same_flow(flow, given), flow.c.lease_token == given.c.token, flow.c.lease_holder.is_not(None))


def _renew() -> Any:
    given = relation("held", _HELD_COLUMNS).cte("given")
    return (
        update(flow)
        .where(_held(given))
        .values(lease_expires_at=NOW + param("lease_duration", INTERVAL))
        .returning(flow.c.flow_instance_id, flow.c.lease_holder, flow.c.lease_token, flow.c.lease_expires_at)
    )


def _renew_free() -> Select[Any]:
    """Renews what is free to be renewed; returns all that is held, the others with the leases that they have."""
    given = relation("held", _HELD_COLUMNS).cte("given")
    free = (
        select(flow.c.partition_id, flow.c.flow_instance_id)
        .join_from(given, flow, _held(given))
        .order_by(flow.c.partition_id, flow.c.flow_instance_id)
        .with_for_update(of=flow, key_share=True, skip_locked=True)
        .cte("free")
    )
    renewed = (
        update(flow)
        .where(_same_flow(flow, free))
        .values(lease_expires_at=NOW + param("lease_duration", INTERVAL))
        .returning(flow.c.partition_id, flow.c.flow_instance_id, flow.c.lease_expires_at)
        .cte("renewed")
    )
    ends_at = func.coalesce(renewed.c.lease_expires_at, flow.c.lease_expires_at).label("lease_expires_at")
    held = given.join(flow, _held(given)).outerjoin(renewed, _same_flow(renewed, flow))
    return select(flow.c.flow_instance_id, flow.c.lease_holder, flow.c.lease_token, ends_at).select_from(held)


def _release() -> Any:
    """Releases all or nothing: the rows are locked and counted first. Returns those that are held."""
    given = relation("held", _HELD_COLUMNS).cte("given")
    held = (
        select(flow.c.partition_id, flow.c.flow_instance_id, flow.c.lease_token)
        .join_from(given, flow, _held(given))
        .order_by(flow.c.partition_id, flow.c.flow_instance_id)
        .with_for_update(of=flow, key_share=True)
        .cte("held")
    )
    complete = select(func.count()).select_from(held).scalar_subquery() == param("held_count", BIGINT)
    released = (
        update(flow)
        .where(_same_flow(flow, held), complete)
        .values(lease_holder=None, lease_expires_at=None)
        .cte("released")
    )
    return select(held.c.flow_instance_id, held.c.lease_token).add_cte(released)


RENEW = Statement("flow_instances.renew", _renew)
RENEW_FREE = Statement("flow_instances.renew.free", _renew_free)
RELEASE = Statement("flow_instances.release", _release)

# Why an advance wrote nothing

DIAGNOSE = Statement(
    "flow_instances.diagnose",
    lambda: select(flow.c.version, flow.c.status, flow.c.lease_holder, flow.c.lease_token).where(
        flow.c.partition_id == param("partition_id", INTEGER),
        flow.c.flow_instance_id == param("flow_instance_id", UUID_VALUE),
    ),
)
DIAGNOSE_NEW = Statement(
    "flow_instances.diagnose_new",
    lambda: select(
        exists()
        .where(
            flow.c.partition_id == param("partition_id", INTEGER),
            flow.c.flow_instance_id == param("flow_instance_id", UUID_VALUE),
        )
        .label("is_stored"),
        exists()
        .where(
            flow_definitions.c.flow_id == param("flow_id", TEXT),
            flow_definitions.c.version == param("flow_version", INTEGER),
            flow_definitions.c.undeployed_at.is_(None),
        )
        .label("is_deployed"),
        select(idempotency_keys.c.flow_instance_id)
        .where(
            idempotency_keys.c.partition_id == param("key_partition_id", INTEGER),
            idempotency_keys.c.scope == param("key_scope", TEXT),
            idempotency_keys.c.key == param("business_key", TEXT),
        )
        .scalar_subquery()
        .label("key_holder"),
    ),
)


def _free_key() -> Any:
    """Frees a business key that an id holds although its flow was stored without that key."""
    key = idempotency_keys.c
    is_rightful = exists().where(
        flow.c.partition_id == param("partition_id", INTEGER),
        flow.c.flow_instance_id == key.flow_instance_id,
        flow.c.business_key == key.key,
    )
    return (
        delete(idempotency_keys)
        .where(
            key.partition_id == param("key_partition_id", INTEGER),
            key.scope == param("key_scope", TEXT),
            key.key == param("business_key", TEXT),
            key.flow_instance_id == param("flow_instance_id", UUID_VALUE),
            ~is_rightful,
        )
        .returning(key.key)
    )


FREE_KEY = Statement("flow_instances.free_key", _free_key)

# History

HISTORY = Statement(
    "flow_instances.history",
    lambda: (
        select(*event_columns())
        .where(
            flow_events.c.partition_id == param("partition_id", INTEGER),
            flow_events.c.flow_instance_id == param("flow_instance_id", UUID_VALUE),
            flow_events.c.sequence > param("after", BIGINT),
        )
        .order_by(flow_events.c.sequence)
        .limit(param("limit", BIGINT))
    ),
)
