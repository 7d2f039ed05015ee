from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_state.memory.indexes import BUSY, FREE, ClaimIndex, Index
from cascade_state.memory.rows import FlowRow
from cascade_state.memory.schema import new_table
from cascade_state.memory.tables import LayeredTable, Rows, Table, Undo
from cascade_state.model.flow_status import FlowStatus

START = datetime(2030, 1, 1, tzinfo=UTC)


class Row(NamedTuple):
    key: int
    group: str | None
    rank: int
    busy_until: datetime | None = None


def indexes() -> dict[str, Index]:
    return {
        "group": Index(lambda row: None if row.group is None else (row.group, (row.rank, row.key))),
        "claimable": ClaimIndex(lambda row: ((row.rank, row.key), row.busy_until)),
    }


def table() -> Table[int, Row]:
    return Table(indexes(), Undo())


def no_rows() -> dict[int, Row]:
    return {}


INSTANTS = st.one_of(st.none(), st.integers(0, 4).map(lambda seconds: START + timedelta(seconds=seconds)))
ROWS = st.builds(Row, st.integers(0, 7), st.sampled_from(["a", "b", None]), st.integers(0, 3), INSTANTS)
WRITES = st.lists(st.tuples(st.booleans(), ROWS), max_size=20)


def write(rows: Rows[int, Row], model: dict[int, Row], writes: list[tuple[bool, Row]]) -> None:
    for puts, row in writes:
        if puts:
            rows.put(row.key, row)
            model[row.key] = row
        else:
            rows.remove(row.key)
            model.pop(row.key, None)


def assert_same(rows: Rows[int, Row], model: dict[int, Row]) -> None:
    """The rows, and each index, are what the model says."""
    for key in range(8):
        assert rows.get(key) == model.get(key)
    for group in ("a", "b"):
        members = sorted((row.rank, row.key) for row in model.values() if row.group == group)
        assert list(rows.entries("group", group)) == members
        assert rows.size("group", group) == len(members)
        if members:
            assert list(rows.entries("group", group, after=members[0])) == members[1:]
    now = START + timedelta(seconds=2)
    free = sorted((row.rank, row.key) for row in model.values() if row.busy_until is None or row.busy_until <= now)
    busy = sorted(
        (row.busy_until, row.rank, row.key)
        for row in model.values()
        if row.busy_until is not None and row.busy_until > now
    )
    assert list(rows.entries("claimable", FREE, now=now)) == free
    assert list(rows.entries("claimable", BUSY, now=now)) == busy


@settings(max_examples=200)
@given(WRITES)
def test_a_table_and_its_indexes_agree(writes: list[tuple[bool, Row]]) -> None:
    rows, model = table(), no_rows()
    write(rows, model, writes)
    assert_same(rows, model)


@settings(max_examples=200)
@given(WRITES, WRITES)
def test_a_layer_shows_its_changes_and_leaves_the_base_alone(
    below: list[tuple[bool, Row]], above: list[tuple[bool, Row]]
) -> None:
    base, base_model = table(), no_rows()
    write(base, base_model, below)
    layer, model = LayeredTable(base, table(), Undo()), dict(base_model)
    write(layer, model, above)
    assert_same(layer, model)
    assert_same(base, base_model)


@settings(max_examples=200)
@given(WRITES, WRITES, WRITES)
def test_undo_goes_back_to_a_mark_and_to_the_start(
    below: list[tuple[bool, Row]], kept: list[tuple[bool, Row]], undone: list[tuple[bool, Row]]
) -> None:
    base, base_model = table(), no_rows()
    write(base, base_model, below)
    undo = Undo()
    layer, model = LayeredTable(base, Table(indexes(), undo), undo), dict(base_model)
    write(layer, model, kept)
    mark = len(undo.changes)
    write(layer, dict(model), undone)
    undo.back_to(mark)
    assert_same(layer, model)
    undo.back_to(0)
    assert_same(layer, base_model)
    assert not layer.changed


@settings(max_examples=200)
@given(WRITES, WRITES)
def test_undo_takes_back_what_a_call_wrote_to_the_table(
    before: list[tuple[bool, Row]], undone: list[tuple[bool, Row]]
) -> None:
    undo = Undo()
    rows: Table[int, Row] = Table(indexes(), undo)
    model: dict[int, Row] = {}
    write(rows, model, before)
    undo.changes.clear()
    write(rows, dict(model), undone)
    undo.back_to(0)
    assert_same(rows, model)


@settings(max_examples=200)
@given(WRITES, WRITES, WRITES)
def test_what_a_snapshot_remembers_hides_later_changes(
    before: list[tuple[bool, Row]], after: list[tuple[bool, Row]], own: list[tuple[bool, Row]]
) -> None:
    base, seen = table(), no_rows()
    write(base, seen, before)
    remembered = LayeredTable(base, table(), Undo())
    for puts, row in after:
        old = base.set(row.key, row) if puts else base.drop(row.key)
        remembered.remember(row.key, old)
    assert_same(remembered, seen)
    layer, model = LayeredTable(remembered, table(), Undo()), dict(seen)
    write(layer, model, own)
    assert_same(layer, model)


def test_a_row_that_was_freed_in_passing_can_still_be_changed_and_removed() -> None:
    rows = table()
    row = Row(1, "a", 0, START)
    rows.set(1, row)
    assert list(rows.entries("claimable", FREE, now=START)) == [(0, 1)]
    rows.set(1, row._replace(rank=5, busy_until=START + timedelta(seconds=9)))
    assert list(rows.entries("claimable", FREE, now=START)) == []
    assert list(rows.entries("claimable", FREE, now=START + timedelta(seconds=9))) == [(5, 1)]
    rows.drop(1)
    assert list(rows.entries("claimable", FREE, now=START + timedelta(seconds=9))) == []


FLOW = FlowRow(
    flow_instance_id=UUID(int=5),
    root_id=UUID(int=4),
    parent_id=UUID(int=4),
    flow_id="order",
    flow_version=1,
    status=FlowStatus.RUNNING,
    business_key="b",
    trigger_data="{}",
    error=None,
    search_attributes="{}",
    waits=None,
    pending_timers=None,
    version=1,
    event_count=1,
    created_at=START,
    updated_at=START,
    completed_at=None,
)
# For each column, another value than that of FLOW.
OTHER: dict[str, Any] = {
    "flow_instance_id": UUID(int=6),
    "root_id": UUID(int=3),
    "parent_id": None,
    "flow_id": "other",
    "flow_version": 2,
    "status": FlowStatus.FAILED,
    "business_key": None,
    "trigger_data": "1",
    "error": "1",
    "search_attributes": '{"a":1}',
    "waits": "{}",
    "pending_timers": "{}",
    "version": 2,
    "event_count": 2,
    "created_at": START + timedelta(1),
    "updated_at": START + timedelta(1),
    "completed_at": START,
    "lease_holder": "w",
    "lease_token": 1,
    "lease_expires_at": START,
}


@pytest.mark.parametrize("column", FlowRow._fields)
def test_the_indexes_of_flows_follow_every_column_that_they_look_at(column: str) -> None:
    changed = FLOW._replace(**{column: OTHER[column]})
    assert changed != FLOW
    updated, fresh = new_table("flow_instances", Undo()), new_table("flow_instances", Undo())
    updated.set(5, FLOW)
    updated.set(5, changed)
    fresh.set(5, changed)
    for name, index in fresh._indexes.items():
        mine = updated._indexes[name]
        assert {group: list(mine.walk(group, None, None)) for group in mine.groups()} == {
            group: list(index.walk(group, None, None)) for group in index.groups()
        }, name
