"""The index page of the decision records, from their titles and states."""

from pathlib import Path

DIRECTORY = Path("docs/adr")
HEAD = """\
# Decisions

Each page records one decision: what made it necessary, what was decided, and what follows. A decision is
changed by a new record that names the old one. The reason also stands where the code is.

| | decision | state |
|---|---|---|
"""


def _row(path: Path) -> str:
    title, _, rest = path.read_text(encoding="utf-8").partition("\n")
    number, _, name = title.removeprefix("# ").partition(" ")
    state = rest.strip().partition("\n")[0].removeprefix("State: ")
    return f"| {number} | [{name}]({path.name}) | {state} |\n"


def generate() -> dict[str, str]:
    """Return the index of `docs/adr`."""
    root = Path(__file__).parent.parent.parent
    records = sorted((root / DIRECTORY).glob("[0-9]*.md"))
    return {str(DIRECTORY / "index.md"): HEAD + "".join(map(_row, records))}
