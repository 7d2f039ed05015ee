"""Showing how a run goes: a live line with rich where there is a terminal, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cascade_state.demo.run import Show
from cascade_state.demo.world import World

__all__ = ["PlainShow", "print_report", "shown"]

_PLAIN_SECONDS = 2.0


class PlainShow:
    """Writes lines to standard error."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._latest = self._begun

    def say(self, text: str) -> None:
        """Writes what happened, and when."""
        print(f"{time.monotonic() - self._begun:5.1f} s  {text}", file=sys.stderr, flush=True)

    def progress(self, world: World, total: int) -> None:
        """Writes how far it has come, at most every two seconds."""
        if time.monotonic() - self._latest >= _PLAIN_SECONDS:
            self._latest = time.monotonic()
            self.say(f"{world.ended} of {total} flows ended, {world.steps_done} steps done")


class LiveShow(PlainShow):
    """Draws a bar on the terminal, and writes lines above it."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self._bar = bar
        self._task = bar.add_task("starting", total=None)

    def say(self, text: str) -> None:
        """Writes what happened above the bar."""
        self._bar.console.print(f"[dim]{time.monotonic() - self._begun:5.1f} s[/]  {text}", highlight=False)

    def progress(self, world: World, total: int) -> None:
        """Moves the bar."""
        description = f"{world.steps_done} steps"
        self._bar.update(self._task, description=description, completed=world.ended, total=total)


@contextmanager
def shown() -> Iterator[Show]:
    """Gives something that shows a run as well as this terminal allows."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield PlainShow()
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainShow()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield LiveShow(bar)


def print_report(lines: list[str]) -> None:
    """Prints the lines, in colour where that is possible."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        print("\n".join(lines))
        return
    text = Text("\n".join(lines))
    text.highlight_regex(r"✓", "green")
    text.highlight_regex(r"✗[^\n]*", "bold red")
    text.highlight_regex(r"(?m)^\S.*$", "bold")
    Console(soft_wrap=True).print(text)
