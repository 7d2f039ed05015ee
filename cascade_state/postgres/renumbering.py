"""The feed of a database that came from another server, in a dump or by logical replication.

The feed is in the order of transaction ids, and each server counts its own. Where the ids that came with the data lie
in this server's future, nothing of it could be handed out, and what is written now would come in front of it. So they
get numbers below those that this server still gives out: in the same order, and no two of them the same number. What
lies behind a checkpoint stays behind it, and nothing is lost, doubled or moved.

Each id becomes the highest that leaves room for those above it, or stays if it is lower. On a server that is ahead this
changes nothing. A young server has not given out as many ids as there are to be placed; then it counts on first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Select,
    Text,
    bindparam,
    cast,
    column,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    union,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cascade_state.errors import TransactionAborted
from cascade_state.postgres.columns import XID8
from cascade_state.postgres.statements.feed_places import Snapshot
from cascade_state.postgres.tables import feed_checkpoints, feed_consumers, flow_events

__all__ = ["is_from_another_server", "renumber_feed"]

_log = logging.getLogger("cascade_state.feed")

_LOCK_TIMEOUT = "10s"  # as in the migrations: who waits for a busy table makes everybody after it wait
_POLL_SECONDS = 0.05
_COUNTED_AT_ONCE = 20_000  # a quarter of a second or less

_checkpoint = feed_checkpoints.c
_consumer = feed_consumers.c
_event = flow_events.c

_BEGINNING = cast(literal("0", Text()), XID8())
_NOW = func.pg_current_snapshot()

# An id for each round, in a transaction of its own that does nothing else.
_COUNT_ON = text(
    "DO $$ BEGIN FOR round IN 1..CAST(current_setting('cascade_state.ids') AS integer) LOOP "
    "PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
)


async def is_from_another_server(connection: AsyncConnection, *, schema: str | None) -> bool:
    """Says whether something in the feed has an id that this server has not given out yet."""
    next_id = func.pg_snapshot_xmax(_NOW)
    begun = func.pg_snapshot_xmax(cast(_consumer.start_snapshot, Snapshot()))
    # The end of an index, also where the server knows nothing of the table yet.
    last = select(_event.recorded_xid).order_by(_event.recorded_xid.desc()).limit(1).scalar_subquery()
    statement = select(
        or_(
            last >= next_id,
            exists().where(_checkpoint.recorded_xid > next_id),  # a start "now" on an idle server is the next id
            exists().where(begun > next_id),
        )
    )
    return bool(await connection.scalar(statement, execution_options=_in(schema)))


async def renumber_feed(engine: AsyncEngine, *, schema: str | None, wait: timedelta) -> None:
    """Makes the feed of a database from another server go on here; does nothing if it does already.

    Several at once are safe: one does it, the others wait and find it done.

    Args:
        wait: How long to wait for transactions that are older than the restored ids would become.

    Raises:
        TransactionAborted: They were still open after that, or a table was busy for too long; call again.
    """
    deadline = time.monotonic() + wait.total_seconds()
    async with engine.connect() as connection:
        while await is_from_another_server(connection, schema=schema):
            await connection.rollback()
            await _make_room(connection, schema)
            if await _renumber(connection, schema):
                return
            if time.monotonic() >= deadline:
                raise TransactionAborted(reason="a transaction of this server is older than the restore; end it")
            await asyncio.sleep(_POLL_SECONDS)


async def _make_room(connection: AsyncConnection, schema: str | None) -> None:
    """Lets the server count on until it has given out more ids than are to be placed."""
    needed = await _count(connection, schema)
    await connection.rollback()
    while (missing := needed + 1 - await _next_id(connection)) > 0:
        count = str(min(missing, _COUNTED_AT_ONCE))
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None  # noqa: S101 - for the type checker
        await driver.execute("SELECT set_config('cascade_state.ids', $1, false)", count)
        await driver.execute(_COUNT_ON.text)


async def _next_id(connection: AsyncConnection) -> int:
    number = (await connection.scalars(select(_number(func.pg_snapshot_xmax(_NOW))))).one()
    await connection.rollback()
    return number


async def _count(connection: AsyncConnection, schema: str | None) -> int:
    statement = select(func.count()).select_from(_places())
    return (await connection.scalars(statement, execution_options=_in(schema))).one()


async def _renumber(connection: AsyncConnection, schema: str | None) -> bool:
    """Renumbers in one transaction; returns False, and does nothing, while an older one leaves too little room."""
    async with connection.begin():
        await connection.execute(select(func.set_config("lock_timeout", _LOCK_TIMEOUT, True)))
        for table in (flow_events, feed_checkpoints, feed_consumers):
            name = _qualified(connection, schema, table.name).replace(":", r"\:")  # which would be a parameter
            await connection.execute(text(f"LOCK TABLE {name} IN EXCLUSIVE MODE"))
        if not await is_from_another_server(connection, schema=schema):
            return True
        horizon = (await connection.scalars(select(_number(func.pg_snapshot_xmin(_NOW))))).one()
        if horizon <= await _count(connection, schema):
            return False
        renumbered = await connection.scalar(_renumbering(), {"horizon": horizon}, execution_options=_in(schema))
        _log.info("feed renumbered for this server transactions=%d below=%d", renumbered, horizon)
        return True


def _places() -> Any:
    """Every transaction id that the feed is ordered by; the place in front of everything is no id."""
    checkpoints = select(_checkpoint.recorded_xid).where(_checkpoint.recorded_xid > _BEGINNING)
    return union(select(_event.recorded_xid.label("place")), checkpoints).subquery("places")


def _renumbering() -> Select[Any]:
    """Changes events, checkpoints and snapshots at once; returns how many transactions have another number now."""
    places, horizon = _places(), bindparam("horizon", type_=BigInteger)
    above = func.count().over() - func.row_number().over(order_by=places.c.place)
    number = func.least(_number(places.c.place), horizon - 1 - above)
    chosen = select(places.c.place, number.label("number")).subquery("chosen")
    numbered = (
        select(chosen.c.place, chosen.c.number, cast(cast(chosen.c.number, Text), XID8()).label("new_place"))
        .cte("numbered")
        .prefix_with("MATERIALIZED")
    )
    is_new = numbered.c.place != numbered.c.new_place
    parts = [
        update(table)
        .where(table.c.recorded_xid == numbered.c.place, is_new)
        .values(recorded_xid=numbered.c.new_place)
        .cte(f"renumbered_{table.name}")
        for table in (flow_events, feed_checkpoints)
    ]
    begun = (
        update(feed_consumers)
        .where(_consumer.start_snapshot.is_not(None))
        .values(start_snapshot=_snapshot(numbered, horizon))
        .cte("renumbered_snapshots")
    )
    return select(func.count()).select_from(numbered).where(is_new).add_cte(*parts, begun)


def _snapshot(numbered: CTE, horizon: ColumnElement[int]) -> ColumnElement[str]:
    """The snapshot in which the same of the renumbered ids are visible, and none that is still to come."""
    old = cast(_consumer.start_snapshot, Snapshot())

    def first_from(place: ColumnElement[Any]) -> ColumnElement[str]:
        lowest = select(func.min(numbered.c.number)).where(numbered.c.place >= place).correlate(feed_consumers)
        return cast(func.coalesce(lowest.scalar_subquery(), horizon), Text)

    under_way = func.pg_snapshot_xip(old).table_valued(column("place", XID8())).render_derived(name="under_way")
    listed = (
        select(
            func.string_agg(
                cast(numbered.c.number, Text), aggregate_order_by(literal(",", Text()), numbered.c.number.asc())
            )
        )
        .join_from(numbered, under_way, numbered.c.place == under_way.c.place)
        .correlate(feed_consumers)
        .scalar_subquery()
    )
    colon = literal(":", Text())
    begins, ends = first_from(func.pg_snapshot_xmin(old)), first_from(func.pg_snapshot_xmax(old))
    return begins.concat(colon).concat(ends).concat(colon).concat(func.coalesce(listed, literal("", Text())))


def _number(place: ColumnElement[Any]) -> ColumnElement[int]:
    return cast(cast(place, Text), BigInteger)


def _in(schema: str | None) -> dict[str, Any]:
    return {"schema_translate_map": {None: schema}} if schema else {}


def _qualified(connection: AsyncConnection, schema: str | None, name: str) -> str:
    quote = connection.dialect.identifier_preparer.quote
    return name if schema is None else f"{quote(schema)}.{name}"
