"""What a page of the documentation holds that can be executed: its fenced blocks, in order.

A page may say in its front matter how it is run (`run: memory`, `run: postgresql`; both when it says nothing). A
comment that starts with `python` holds code that a reader does not need to see, such as making tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_BLOCK = re.compile(
    r"^(?P<indent>[ ]*)```(?P<info>[^\n`]*)\n(?P<fenced>.*?)^(?P=indent)```[ ]*$|^<!-- python\n(?P<hidden>.*?)^-->$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One block: its language, its file name if it has one, its text, and where it stands."""

    language: str
    title: str | None
    text: str
    page: Path
    line: int

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def source(self) -> str:
        """The text, moved down so that a traceback shows the lines of the page."""
        return "\n" * (self.line - 1) + self.text


def blocks(page: Path) -> list[Block]:
    """Returns the blocks of a page, in order."""
    return list(_blocks(page, page.read_text(encoding="utf-8")))


def run_on(page: Path) -> tuple[str, ...]:
    """Returns the back ends that a page is run on."""
    front = _FRONT_MATTER.match(page.read_text(encoding="utf-8"))
    wanted = re.search(r"^run: (.*)$", front[1], re.MULTILINE) if front else None
    return tuple(wanted[1].split()) if wanted else ("memory", "postgresql")


def _blocks(page: Path, text: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        if match["hidden"] is not None:
            yield Block("python", None, match["hidden"], page, line)
            continue
        language, _, options = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', options)
        yield Block(language, title and title[1], dedent(match["fenced"]), page, line)
