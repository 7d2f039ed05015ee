from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade_state.memory import sorted_keys
from cascade_state.memory.sorted_keys import SortedKeys

ENTRIES = st.tuples(st.integers(0, 6), st.integers(0, 12))


@pytest.fixture(autouse=True, scope="module")
def _short_chunks() -> object:
    """Chunks so short that a few entries are many chunks."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sorted_keys, "_CHUNK", 2)
    yield
    patch.undo()


@settings(max_examples=300)
@given(st.lists(st.tuples(st.booleans(), ENTRIES)), ENTRIES, st.integers(-1, 7))
def test_it_is_a_sorted_set(steps: list[tuple[bool, tuple[int, int]]], after: tuple[int, int], bound: int) -> None:
    keys, model = SortedKeys(), set()
    for adds, entry in steps:
        if adds and entry not in model:
            keys.add(entry)
            model.add(entry)
        elif not adds:
            assert keys.discard(entry) is (entry in model)
            model.discard(entry)
        assert len(keys) == len(model)
    assert list(keys.walk()) == sorted(model)
    assert list(keys.walk(after)) == sorted(entry for entry in model if entry > after)
    assert list(keys.walk((bound,))) == sorted(entry for entry in model if entry > (bound,))

    popped = keys.pop_until(bound)

    assert popped == sorted(entry for entry in model if entry[0] <= bound)
    assert list(keys.walk()) == sorted(entry for entry in model if entry[0] > bound)
    assert len(keys) == len(model) - len(popped)


def test_a_long_collection_stays_sorted() -> None:
    keys = SortedKeys()
    for number in range(2_000):
        keys.add(((number * 7919) % 2_000,))
    assert list(keys.walk()) == [(number,) for number in range(2_000)]
