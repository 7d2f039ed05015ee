"""What the demo writes while it runs and at the end, with and without rich."""

from __future__ import annotations

import sys

import pytest

from cascade_state import open_store
from cascade_state.demo.scenario import Scenario
from cascade_state.demo.show import LiveShow, PlainShow, print_report, shown
from cascade_state.demo.text_table import table
from cascade_state.demo.world import World


@pytest.fixture
def world() -> World:
    """A world in which three flows have ended."""
    return World(open_store("memory://"), Scenario.make(flow_count=12, seed=1), ended=3, steps_done=17)


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rich.console", "rich.progress", "rich.text"):
        monkeypatch.setitem(sys.modules, name, None)


def test_on_a_terminal_a_bar_moves_below_the_lines(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shown() as show:
        assert isinstance(show, LiveShow)
        show.say("the server is up")
        show.progress(world, 45)

    written = capsys.readouterr().err
    assert "the server is up" in written
    assert "17 steps" in written
    assert "3/45" in written


@pytest.mark.usefixtures("without_rich")
def test_without_rich_lines_go_to_standard_error(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown() as show:
        assert isinstance(show, PlainShow)
        show.say("the server is up")
        show.progress(world, 45)
        monkeypatch.setattr(show, "_latest", show._begun - 60.0)
        show.progress(world, 45)
        show.progress(world, 45)

    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2  # progress is told at most every two seconds
    assert lines[0].endswith("s  the server is up")
    assert lines[1].endswith("s  3 of 45 flows ended, 17 steps done")


@pytest.mark.usefixtures("without_rich")
def test_without_rich_the_report_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(["Invariants", "  ✓ it holds"])

    assert capsys.readouterr().out == "Invariants\n  ✓ it holds\n"


def test_with_rich_the_report_says_the_same_in_colour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_report(["Invariants", "  ✓ it holds", "  ✗ it broke [1]"])

    written = capsys.readouterr().out
    assert "\x1b[" in written
    assert "it holds" in written
    assert "✗ it broke [1]" in written


def test_columns_are_aligned() -> None:
    assert table([("a", "1", "x"), ("long", "10", "")], right=(1,)) == ["  a      1  x", "  long  10"]
