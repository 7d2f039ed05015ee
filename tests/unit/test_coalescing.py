"""Coalescing: what travels together, what never does, and what each caller learns when it goes wrong."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cascade_state.errors import StoreError, StoreUnavailable
from cascade_state.postgres.coalescing import Line


class _Database:
    """Notes the batches that it is sent; answers each when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = asyncio.Event()
        self.fails: Callable[[Sequence[str]], Exception | None] = lambda _: None

    async def run(self, items: Sequence[str]) -> list[str]:
        self.batches.append(list(items))
        await self.open.wait()
        error = self.fails(items)
        if error is not None:
            raise error
        return [f"stored {item}" for item in items]


def _keys(item: str) -> tuple[str, ...]:
    return (item[0],)  # items with the same first letter must not meet


async def _submitted(line: Line[str, str], *items: str) -> list[asyncio.Task[Any]]:
    tasks = []
    for item in items:
        tasks.append(asyncio.create_task(line.submit(item)))
        await asyncio.sleep(0)  # in this order
    return tasks


async def _outcomes(tasks: Sequence[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)


@pytest.fixture
def database() -> _Database:
    return _Database()


@pytest.fixture
def line(database: _Database) -> Line[str, str]:
    return Line(database.run, _keys)


async def test_an_idle_line_sends_at_once_and_what_waits_leaves_together(
    database: _Database, line: Line[str, str]
) -> None:
    tasks = await _submitted(line, "a1", "b1", "c1", "d1")
    assert database.batches == [["a1"]]
    database.open.set()
    assert await _outcomes(tasks) == ["stored a1", "stored b1", "stored c1", "stored d1"]
    assert database.batches == [["a1"], ["b1", "c1", "d1"]]


async def test_items_of_one_key_leave_one_after_the_other_in_their_order(
    database: _Database, line: Line[str, str]
) -> None:
    tasks = await _submitted(line, "a1", "a2", "b1", "a3", "b2")
    database.open.set()
    await _outcomes(tasks)
    assert database.batches == [["a1"], ["a2", "b1"], ["a3", "b2"]]


async def test_a_refused_batch_is_replayed_one_by_one_and_each_error_is_its_own(
    database: _Database, line: Line[str, str]
) -> None:
    database.fails = lambda items: StoreError("refused", sqlstate="54000") if "b1" in items else None
    tasks = await _submitted(line, "a1", "b1", "c1")
    database.open.set()
    first, second, third = await _outcomes(tasks)
    assert (first, third) == ("stored a1", "stored c1")
    assert isinstance(second, StoreError)
    assert database.batches == [["a1"], ["b1", "c1"], ["b1"], ["c1"]]


async def test_a_batch_whose_connection_broke_is_never_sent_again(database: _Database, line: Line[str, str]) -> None:
    """It may have been committed: sending it again could store it twice."""
    database.fails = lambda items: StoreUnavailable(reason="gone") if len(items) > 1 else None
    tasks = await _submitted(line, "a1", "b1", "c1")
    database.open.set()
    first, *others = await _outcomes(tasks)
    assert first == "stored a1"
    assert all(isinstance(error, StoreUnavailable) for error in others)
    assert database.batches == [["a1"], ["b1", "c1"]]


async def test_a_cancelled_caller_is_out_while_it_waits_and_in_once_it_left(
    database: _Database, line: Line[str, str]
) -> None:
    tasks = await _submitted(line, "a1", "b1", "c1")
    tasks[1].cancel()
    await asyncio.sleep(0)
    database.open.set()
    outcomes = await _outcomes(tasks)
    assert database.batches == [["a1"], ["c1"]]
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert outcomes[2] == "stored c1"

    database.open.clear()
    database.batches.clear()
    tasks = await _submitted(line, "a1", "b1", "c1")
    database.open.set()
    await asyncio.wait_for(tasks[0], 10)
    await asyncio.sleep(0)
    assert len(database.batches) == 2
    tasks[1].cancel()  # its batch has left
    outcomes = await _outcomes(tasks)
    assert database.batches == [["a1"], ["b1", "c1"]]
    assert outcomes[2] == "stored c1"


async def test_a_cancelled_leader_lets_the_others_go_on(database: _Database, line: Line[str, str]) -> None:
    tasks = await _submitted(line, "a1", "b1")
    tasks[0].cancel()
    database.open.set()
    outcomes = await _outcomes(tasks)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert outcomes[1] == "stored b1"


async def _steps(line: Line[str, str], letter: str, count: int) -> None:
    for number in range(count):
        await line.submit(f"{letter}{number}")


async def test_tasks_that_were_answered_together_leave_together_again() -> None:
    batches: list[list[str]] = []

    async def run(items: Sequence[str]) -> list[str]:
        batches.append(list(items))
        for _ in range(3):
            await asyncio.sleep(0)  # under way
        return list(items)

    line = Line(run, _keys)
    await asyncio.wait_for(asyncio.gather(*(_steps(line, letter, 6) for letter in "abcdefgh")), 10)
    alone, *together, last = map(len, batches)
    assert alone == 1  # the line was idle, and nobody waits for company
    assert min(together) > 1  # later nobody goes ahead of the others
    assert alone + sum(together) + last == 48


async def test_a_line_that_is_no_longer_crowded_sends_at_once_again(database: _Database, line: Line[str, str]) -> None:
    database.open.set()
    await _outcomes([asyncio.create_task(line.submit(item)) for item in ("a1", "b1", "c1")])
    assert await asyncio.wait_for(line.submit("d1"), 10) == "stored d1"
    task = asyncio.create_task(line.submit("e1"))
    await asyncio.sleep(0)
    assert database.batches[-1] == ["e1"]  # without a turn of the event loop in between
    assert await _outcomes([task]) == ["stored e1"]


async def test_two_lanes_share_what_waits() -> None:
    first, rest = asyncio.Event(), asyncio.Event()
    batches: list[list[str]] = []

    async def run(items: Sequence[str]) -> list[str]:
        batches.append(list(items))
        await (first if len(batches) == 1 else rest).wait()
        return list(items)

    line = Line(run, _keys)
    items = [f"{letter}1" for letter in "abcdefghijklmnopq"]
    tasks = await _submitted(line, *items)
    assert batches == [["a1"]]
    first.set()
    await asyncio.wait_for(tasks[0], 10)
    for _ in range(3):
        await asyncio.sleep(0)
    assert [len(batch) for batch in batches] == [1, 8, 8]  # both halves are under way
    rest.set()
    assert await _outcomes(tasks) == items


async def test_items_of_one_key_never_fly_in_two_lanes_at_once(database: _Database) -> None:
    flying: set[str] = set()

    async def run(items: Sequence[str]) -> list[str]:
        letters = {item[0] for item in items}
        assert flying.isdisjoint(letters)
        flying.update(letters)
        await asyncio.sleep(0)
        flying.difference_update(letters)
        return await database.run(items)

    line = Line(run, _keys)
    database.open.set()
    items = [f"{letter}{number}" for number in range(6) for letter in "abcdefgh"]
    tasks = [asyncio.create_task(line.submit(item)) for item in items]
    assert await _outcomes(tasks) == [f"stored {item}" for item in items]
    sent = [item for batch in database.batches for item in batch]
    for letter in "abcdefgh":  # and keep their order
        assert [item for item in sent if item[0] == letter] == [item for item in items if item[0] == letter]


async def test_closing_waits_for_what_is_under_way(database: _Database, line: Line[str, str]) -> None:
    tasks = await _submitted(line, "a1", "b1")
    asyncio.get_running_loop().call_soon(database.open.set)
    await asyncio.wait_for(tasks[0], 10)
    await asyncio.wait_for(line.close(), 10)
    assert (await _outcomes(tasks))[1] == "stored b1"
