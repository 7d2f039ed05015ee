"""The entity-relationship diagram and the page of tables, from the metadata."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, ForeignKeyConstraint, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

from cascade_state.postgres.tables import metadata
from scripts.drawing import ACCENT, FAINT, FILL, GROUND, Drawing

# Where each table stands: columns of the picture, from above. A table that has no place stops `make generate`.
PLACES = (
    ("flow_definitions", "flow_instances"),
    ("step_results", "component_states", "timers"),
    ("flow_events", "correlations", "lock_tokens"),
    ("early_events", "idempotency_keys", "settings"),
    ("replica_sets", "workers", "partition_targets", "partition_assignments"),
    ("feed_consumers", "feed_checkpoints"),
)
WHAT = {
    "flow_definitions": "Definitions by version. Content never changes; an undeployed one is hidden, not removed.",
    "flow_instances": "One small row a flow, updated by each step. Nothing in it grows with the steps that are done.",
    "step_results": "One row for each step that ended.",
    "component_states": "What components remember between calls.",
    "timers": "Timers that are pending, claimed or dead. A completed or cancelled timer has no row.",
    "flow_events": "The history of each flow, and the feed of all: append-only.",
    "correlations": "Waits, and the deliveries made for them. Lies in the partition of its key.",
    "early_events": "Events that nobody waited for yet, ids remembered for deduplication, and dead letters.",
    "idempotency_keys": "What is unique across partitions: the business keys of flows.",
    "lock_tokens": "The fencing token of each lock that was held beyond a transaction, and who got it last.",
    "settings": "The partition count, fixed by the first migration.",
    "replica_sets": "The replica sets. Whoever changes the membership of one locks its row first.",
    "workers": "The workers of replica sets, with their last heartbeat. One that has left has no row.",
    "partition_targets": "Who is to own each partition of a set; differs from the owner while it is handed over.",
    "partition_assignments": "Who owns each partition of a set, and the generation that a write for it must state.",
    "feed_consumers": "The consumers of the feed: where each started, and whether it is paused.",
    "feed_checkpoints": "How far each consumer is in each partition, and how often what comes next has failed.",
}

BOX = 216
GAP = 36
ROW = 17
HEAD = 26
MARGIN = 20

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]

Corner = tuple[float, float]


def _type(column: Column[object]) -> str:
    text = column.type.compile(_DIALECT).lower()
    return text.partition(" collate")[0].replace("timestamp with time zone", "timestamptz")


def _height(table: Table) -> float:
    return HEAD + ROW * len(table.columns) + 8


def _corners() -> dict[str, Corner]:
    placed = [name for column in PLACES for name in column]
    if sorted(placed) != sorted(metadata.tables) or set(WHAT) != set(placed):
        raise AssertionError("a table has no place in the picture or no description")
    corners: dict[str, Corner] = {}
    for index, names in enumerate(PLACES):
        y: float = MARGIN
        for name in names:
            corners[name] = (MARGIN + index * (BOX + GAP), y)
            y += _height(metadata.tables[name]) + GAP
    return corners


def _row_of(table: Table, column: str) -> float:
    return HEAD + ROW * (list(table.columns.keys()).index(column) + 0.6)


def _draw_table(drawing: Drawing, table: Table, corner: Corner) -> None:
    x, y = corner
    drawing.box(x, y, BOX, _height(table), fill=GROUND)
    drawing.box(x, y, BOX, HEAD, fill=FILL)
    drawing.text(x + 10, y + 18, table.name, weight="600", colour=ACCENT)
    for index, column in enumerate(table.columns):
        line = y + HEAD + ROW * (index + 1) - 3
        weight = "600" if column.primary_key else "normal"
        colour = FAINT if column.nullable else "#1f2937"
        drawing.text(x + 10, line, column.name, size=11, weight=weight, colour=colour)
        drawing.text(x + BOX - 8, line, _type(column), size=10, colour=FAINT, anchor="end", style="italic")


def _draw_key(drawing: Drawing, key: ForeignKeyConstraint, corners: dict[str, Corner], lane: int) -> None:
    source, target = key.table, key.referred_table
    last = key.elements[-1]
    (x1, y1), (x2, y2) = corners[source.name], corners[target.name]
    start, end = y1 + _row_of(source, last.parent.name), y2 + _row_of(target, last.column.name)
    if x1 == x2:  # one above the other: out on the left and back in
        out = x1 - 12
        drawing.line([(x1, start), (out, start), (out, end), (x2, end)], colour=ACCENT)
    elif x1 - x2 < 1.5 * (BOX + GAP):  # next to each other
        out = x1 - 10 - 5 * (lane % 3)
        drawing.line([(x1, start), (out, start), (out, end), (x2 + BOX, end)], colour=ACCENT)
    else:  # over the column between, above its boxes
        over = MARGIN / 2
        out, back = x1 - 10, x2 + BOX + 8
        drawing.line(
            [(x1, start), (out, start), (out, over), (back, over), (back, end), (x2 + BOX, end)], colour=ACCENT
        )
    drawing.box((x2 if x1 == x2 else x2 + BOX) - 3, end - 3, 6, 6, fill=ACCENT, stroke=ACCENT, radius=3)


def _picture() -> str:
    corners = _corners()
    width = 2 * MARGIN + len(PLACES) * BOX + (len(PLACES) - 1) * GAP
    height = max(y + _height(metadata.tables[name]) for name, (_, y) in corners.items()) + 2 * MARGIN + 6
    drawing = Drawing(width, int(height), "The tables of cascade_state and their foreign keys")
    for name, corner in corners.items():
        _draw_table(drawing, metadata.tables[name], corner)
    lane = 0
    for name in corners:
        for key in sorted(metadata.tables[name].foreign_key_constraints, key=lambda key: key.referred_table.name):
            _draw_key(drawing, key, corners, lane)
            lane += 1
    note = "bold: primary key · grey: may be null · line: foreign key, to the dot"
    drawing.text(MARGIN, height - 12, note, size=11, colour=FAINT)
    return drawing.svg()


def _column_row(column: Column[object]) -> str:
    null = "yes" if column.nullable else ""
    key = "key" if column.primary_key else ""
    return f"| `{column.name}` | {_type(column)} | {null} | {key} |\n"


def _index_line(statement: str) -> str:
    words = " ".join(statement.split())
    return words.removeprefix("CREATE INDEX ")


def _section(table: Table) -> str:
    lines = [f"## {table.name}\n\n{WHAT[table.name]}\n\n| column | type | null | |\n|---|---|---|---|\n"]
    lines += map(_column_row, table.columns)
    facts = []
    for key in sorted(table.foreign_key_constraints, key=lambda key: str(key.name)):
        ours = ", ".join(column.name for column in key.columns)
        action = ", removed with it" if key.ondelete == "CASCADE" else ""
        facts.append(f"- ({ours}) refers to [{key.referred_table.name}](#{key.referred_table.name}){action}\n")
    checks = [item for item in table.constraints if isinstance(item, CheckConstraint)]
    facts += [f"- check: `{check.sqltext}`\n" for check in sorted(checks, key=lambda check: str(check.name))]
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        facts.append(f"- index `{_index_line(str(CreateIndex(index).compile(dialect=_DIALECT)))}`\n")
    return "".join(lines) + ("\n" + "".join(facts) if facts else "")


PAGE = """\
# Schema

[![Tables and foreign keys](../assets/schema.svg)](../assets/schema.svg)

Drawn from `cascade_state/postgres/tables.py`; a test compares what the migrations make with it. All of it is ours to
change: read it for operation and debugging, write it through the store only.

- `partition_id` leads every primary key but those of the two small tables that lie on every node. It is the low bits of
  the flow's id, or the hash of a key ([hashes and keys](hashes.md)).
- A foreign key exists only where a row cannot come before its flow. `correlations`, `early_events` and
  `idempotency_keys` lie in the partition of their key, so they have none.
- Text compares by code point (collation "C"). Documents are `json`, kept to the letter; only `search_attributes` is
  `jsonb`.
- No triggers, no native enumerations, no sequences, no hard-coded schema: two installations live side by side in two
  schemas.
- Fill factors and autovacuum settings, and the reason for each, stand in `migrations/NOTES.md`.

"""


def generate() -> dict[str, str]:
    """Return the picture and the page."""
    sections = [_section(metadata.tables[name]) for column in PLACES for name in column]
    return {"docs/assets/schema.svg": _picture(), "docs/reference/schema.md": PAGE + "\n".join(sections)}
