"""The statements behind `store.statistics()`.

`COUNT_ALL` counts everything, so it takes as long as the indexes are. `COUNT_SOME` counts each figure no further than
asked, and reports in the same round trip what the server knows from its last ANALYZE, from which larger figures are
estimated: the entries of partial indexes, how frequent each status is, and how due times are spread.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    func,
    literal,
    literal_column,
    or_,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import REAL, TIMESTAMP

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.feeds import failures, lags
from cascade_state.postgres.statements.parameters import BIGINT, NOW, TEXT, param, unforeseen
from cascade_state.postgres.statements.timers import ONE
from cascade_state.postgres.tables import correlations, early_events, flow_instances, timers, workers

__all__ = ["COUNT_ALL", "COUNT_SOME"]

# Written out rather than bound: the planner must recognise the partial indexes without knowing the values.
_PENDING = literal_column("'PENDING'", TEXT)
_DEAD = literal_column("'DEAD'", TEXT)
_DELIVERED = literal_column("'DELIVERED'", TEXT)

_LIVING = timers.c.died_at.is_(None)
_PARTLY_INDEXED = {
    "timers_pending": (timers, _LIVING),
    "timers_dead": (timers, timers.c.died_at.is_not(None)),
    "deliveries_pending": (correlations, correlations.c.status == _DELIVERED),
    "dead_letters": (early_events, early_events.c.status == _DEAD),
}


def _count_all() -> Select[Any]:
    """One row. Each figure reads one index: the cost grows with what is counted, not with what rows hold."""
    by_status = (
        select(flow_instances.c.status, func.count().label("total"))
        .group_by(flow_instances.c.status)
        .subquery("by_status")
    )
    overdue = (
        select(func.count().label("total"), func.min(timers.c.due_at).label("oldest"))
        .where(_LIVING, timers.c.due_at <= NOW, _is_free(timers))
        .subquery("overdue")
    )
    counts = {
        name: select(func.count()).select_from(source).where(condition)
        for name, (source, condition) in _PARTLY_INDEXED.items()
    }
    return select(
        _as_object(by_status.c.status, by_status.c.total).label("instances_by_status"),
        overdue.c.total.label("timers_overdue"),
        overdue.c.oldest.label("oldest_overdue_at"),
        *(count.scalar_subquery().label(name) for name, count in counts.items()),
        *_what_is_few(),
    )


def _count_some() -> Select[Any]:
    """One row. No figure reads more than `most` entries of its index; `timers_due` are those that were looked at."""
    given = _listed("statuses", "status").subquery("given")
    entries = select(ONE.label("entry")).where(flow_instances.c.status == given.c.status)
    by_status = select(given.c.status, _count_up_to_most(entries.correlate(given)).label("total")).subquery("by_status")
    due = (
        select(timers.c.due_at, timers.c.status, timers.c.lease_expires_at)
        .where(_LIVING, timers.c.due_at <= unforeseen(NOW))
        .order_by(timers.c.due_at, timers.c.timer_id)
        .limit(unforeseen(param("most", BIGINT)))
        .subquery("due")
    )
    overdue = select(
        func.count().label("seen"),
        func.count().filter(_is_free(due)).label("total"),
        func.min(due.c.due_at).filter(_is_free(due)).label("oldest"),
    ).subquery("overdue")
    counts = {
        name: _count_up_to_most(select(ONE.label("entry")).select_from(source).where(condition))
        for name, (source, condition) in _PARTLY_INDEXED.items()
    }
    return select(
        _as_object(by_status.c.status, by_status.c.total).label("instances_by_status"),
        overdue.c.seen.label("timers_due"),
        overdue.c.total.label("timers_overdue"),
        overdue.c.oldest.label("oldest_overdue_at"),
        *(count.label(name) for name, count in counts.items()),
        *_what_is_few(),
        *_known_to_the_server(),
    )


def _listed(parameter: str, name: str) -> Select[Any]:
    """A row for each element of an array. Seven in place of ten would count for more than a plan that is kept."""
    listed = unforeseen(cast(param(parameter, TEXT), ARRAY(TEXT)))
    return select(func.unnest(listed).column_valued(name))


def _is_free(source: Any) -> ColumnElement[bool]:
    return or_(source.c.status == _PENDING, source.c.lease_expires_at <= unforeseen(NOW))


def _count_up_to_most(entries: Select[Any]) -> ColumnElement[int]:
    some = entries.limit(unforeseen(param("most", BIGINT))).subquery()
    return select(func.count()).select_from(some).scalar_subquery()


def _what_is_few() -> tuple[ColumnElement[Any], ...]:
    alive = select(func.count()).select_from(workers).where(workers.c.heartbeat_at + workers.c.stale_after > NOW)
    lag, failing = lags().subquery("events_of_consumers"), failures().subquery("partitions_of_consumers")
    return (
        alive.scalar_subquery().label("workers_alive"),
        _as_object(lag.c.consumer, lag.c.events).label("consumer_lags"),
        _as_object(failing.c.consumer, failing.c.partitions).label("consumer_failures"),
    )


def _as_object(name: ColumnElement[str], value: ColumnElement[Any]) -> ColumnElement[str]:
    return cast(select(func.json_object_agg(name, value)).scalar_subquery(), Text)


# What the server knows

_class = table(
    "pg_class", column("oid"), column("relname"), column("relnamespace"), column("reltuples"), schema="pg_catalog"
)
_namespace = table("pg_namespace", column("oid"), column("nspname"), schema="pg_catalog")
_stats = table(
    "pg_stats",
    column("schemaname"),
    column("tablename"),
    column("attname"),
    column("most_common_vals"),
    column("most_common_freqs"),
    column("histogram_bounds"),
    schema="pg_catalog",
)
_FREQUENCIES = ARRAY(REAL)


def _oid(name: ColumnElement[str]) -> ColumnElement[Any]:
    """The table or index of a name, in the schema of the installation or (None) where the connection finds it."""
    return func.to_regclass(func.concat_ws(literal(".", TEXT), func.quote_ident(param("schema", TEXT)), name))


def _known_to_the_server() -> tuple[ColumnElement[Any], ...]:
    sized = _listed("sized", "name").subquery("sized")
    sizes = (
        select(sized.c.name, _class.c.reltuples)
        .join_from(sized, _class, _class.c.oid == _oid(sized.c.name))
        .subquery("sizes")
    )
    statuses = _common("flow_instances", "status", TEXT)
    due_times = _common("timers", "due_at", TIMESTAMP(timezone=True))
    instants = ARRAY(TIMESTAMP(timezone=True))
    bounds = (
        func.unnest(cast(cast(_stats.c.histogram_bounds, Text), instants))
        .table_valued(column("bound", TIMESTAMP(timezone=True)), name="bounds")
        .render_derived()
    )
    passed = func.avg(case((bounds.c.bound <= NOW, literal_column("1.0")), else_=literal_column("0.0")))
    histogram = _of_column(select(passed), "timers", "due_at", bounds)
    common = due_times.subquery("common_due_times").c
    return (
        _as_object(sizes.c.name, sizes.c.reltuples).label("entries"),
        _as_object(*statuses.subquery("common_statuses").c).label("frequencies"),
        histogram.scalar_subquery().label("due_in_histogram"),
        select(func.sum(common.frequency)).scalar_subquery().label("common_due_times"),
        select(func.sum(common.frequency)).where(common.value <= NOW).scalar_subquery().label("common_due"),
    )


def _common(table_name: str, column_name: str, type_: Any) -> Select[Any]:
    """The most common values of a column, and which part of the table has each."""
    values = cast(cast(_stats.c.most_common_vals, Text), ARRAY(type_))
    pairs = (
        func.unnest(values, cast(_stats.c.most_common_freqs, _FREQUENCIES))
        .table_valued(column("value", type_), column("frequency", REAL()), name="pairs")
        .render_derived()
    )
    return _of_column(select(pairs.c.value, pairs.c.frequency), table_name, column_name, pairs)


def _of_column(query: Select[Any], table_name: str, column_name: str, unnested: Any) -> Select[Any]:
    named = and_(_stats.c.schemaname == _namespace.c.nspname, _stats.c.tablename == _class.c.relname)
    return query.select_from(_class, _namespace, _stats, unnested).where(
        _class.c.oid == _oid(literal(table_name, TEXT)),
        _namespace.c.oid == _class.c.relnamespace,
        named,
        _stats.c.attname == literal(column_name, TEXT),
    )


COUNT_ALL = Statement("statistics.count_all", _count_all)
COUNT_SOME = Statement("statistics.count_some", _count_some)
