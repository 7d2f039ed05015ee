"""The picture of the rooms, from the layers that import-linter enforces."""

import tomllib
from pathlib import Path

from scripts.drawing import ACCENT, FAINT, Drawing

WIDTH = 820
ROW = 58
MARGIN = 24

# What a room holds, in a few words; a layer without its words is an error.
WORDS = {
    "cli": "the command cascade-state",
    "demo": "an example engine",
    "testing": "servers, databases, clocks, the contract suite",
    "opening": "open_store(url) picks a back end",
    "postgres": "SQLAlchemy, asyncpg, Alembic",
    "memory": "the same promises, in one process",
    "coordination": "who works on what",
    "abc": "the contract: checks every call, says what it promises",
    "model": "frozen values and pure rules; plans what is written",
    "errors": "one tree, by what the caller can do",
    "ids": "ids and partitions",
    "types": "JSON",
    "clock": "time",
    "telemetry": "metrics and traces",
}


def _layers() -> list[list[str]]:
    project = Path(__file__).parent.parent.parent / "pyproject.toml"
    contracts = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "layers")
    return [[room.strip().strip("()") for room in layer.split("|")] for layer in layers]


def _picture() -> str:
    layers = _layers()
    drawing = Drawing(
        WIDTH, 2 * MARGIN + ROW * (len(layers) + 1), "Rooms of cascade_state, upper ones import lower ones"
    )
    inner = WIDTH - 2 * MARGIN
    drawing.text(MARGIN, MARGIN + 22, "cascade_state", size=16, weight="600")
    drawing.text(WIDTH - MARGIN, MARGIN + 22, "a room imports only rooms below it", size=12, colour=FAINT, anchor="end")
    drawing.text(WIDTH - MARGIN, MARGIN + 38, "neighbours do not see each other", size=12, colour=FAINT, anchor="end")
    for row, rooms in enumerate(layers, start=1):
        width = (inner - 12 * (len(rooms) - 1)) / len(rooms)
        for column, room in enumerate(rooms):
            x, y = MARGIN + column * (width + 12), MARGIN + row * ROW - 6
            drawing.box(x, y, width, ROW - 12)
            drawing.text(x + width / 2, y + 22, room, anchor="middle", weight="600", size=14, colour=ACCENT)
            drawing.text(x + width / 2, y + 39, WORDS[room], anchor="middle", size=12)
    return drawing.svg()


def generate() -> dict[str, str]:
    """Return the picture."""
    return {"docs/assets/architecture.svg": _picture()}
