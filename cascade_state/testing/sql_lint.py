"""A lint over SQL statements: the rules under which they run on one server and on a distributed one alike.

It needs no database. `lint_statement` reads a statement into nested blocks, one for each pair of parentheses, and looks
for what a distributed engine refuses or silently does differently:

- S1 FOR UPDATE or FOR SHARE on a distributed table names one partition.
- S2 no volatile function in UPDATE or DELETE; in ON CONFLICT … DO UPDATE neither a function nor a subquery, since only
  `excluded.*`, columns and constants may stand there; no MERGE; no ctid.
- S3 one clock in a statement, and never `clock_timestamp()`.
- S4 no NOTIFY inside a statement that writes.
- S6 values are bound: a string literal is one of the schema's own words.
- S7 nothing asks for SERIALIZABLE.
- D2 no partition_id is ever changed. D4 no trigger.

(S5, that errors are told apart by SQLSTATE, is about Python and checked elsewhere.) `ALLOWED` excuses the statements
that break a rule for a reason. Tests import this module, and nothing else does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TypeAlias, Union

__all__ = ["ALLOWED", "Violation", "lint_statement"]


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that something breaks."""

    rule: str
    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{self.rule} {self.subject}: {self.reason}"


_ONE_SERVER = (
    "the form for one server, which covers all partitions in one round trip; a distributed engine needs the form that "
    "goes partition by partition"
)

# (rule, pattern of statement names) -> why it may break the rule.
ALLOWED: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("S1", "*.claim*"): _ONE_SERVER,
        ("S1", "*.complete*"): _ONE_SERVER,
        ("S1", "*.renew*"): _ONE_SERVER,
        ("S1", "*.release*"): _ONE_SERVER,
        ("S1", "correlations.bury_*"): _ONE_SERVER,
        ("S1", "correlations.expire"): _ONE_SERVER,
        ("S1", "correlations.match*"): _ONE_SERVER,
        ("S1", "flow_instances.add.*"): _ONE_SERVER,
        ("S1", "flow_instances.advance.*"): _ONE_SERVER,
        ("S1", "component_states.*"): _ONE_SERVER,
        ("S1", "replica_sets.hand_over"): _ONE_SERVER,
        ("S1", "replica_sets.remove_silent"): _ONE_SERVER,
        ("S1", "replica_sets.take_free"): _ONE_SERVER,
        ("S6", "sqlalchemy.settings"): "the migration writes the partition count as a script does, without parameters",
        ("S1", "feeds.purge_events"): "as flow_instances.purge",
        ("S1", "flow_instances.purge"): "a sweep by an administrator; on a distributed engine partition by partition",
    }
)

_Block: TypeAlias = list[Union[str, "_Block"]]

_TOKEN = re.compile(
    r"""
    '(?:[^']|'')*'              # a string
    | "(?:[^"]|"")*"            # a quoted identifier
    | --[^\n]* | /\*.*?\*/      # comments
    | \$\d+                     # a parameter
    | \w+                       # a word or a number
    | ::                        # a cast
    | \S                        # anything else, one character
    """,
    re.VERBOSE | re.DOTALL,
)

# Copied to every node: any of their rows can be locked.
_REFERENCE_TABLES = frozenset({"FEED_CONSUMERS", "FLOW_DEFINITIONS", "SETTINGS"})
_KINDS = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES"})
_WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
_CLOCKS = frozenset(
    {
        "CLOCK_TIMESTAMP",
        "CURRENT_DATE",
        "CURRENT_TIME",
        "CURRENT_TIMESTAMP",
        "LOCALTIME",
        "LOCALTIMESTAMP",
        "NOW",
        "STATEMENT_TIMESTAMP",
        "TIMEOFDAY",
        "TRANSACTION_TIMESTAMP",
    }
)
_VOLATILE = frozenset(
    {
        "CLOCK_TIMESTAMP",
        "CURRVAL",
        "GEN_RANDOM_UUID",
        "LASTVAL",
        "NEXTVAL",
        "PG_ADVISORY_LOCK",
        "PG_ADVISORY_XACT_LOCK",
        "PG_NOTIFY",
        "PG_SLEEP",
        "PG_TRY_ADVISORY_LOCK",
        "PG_TRY_ADVISORY_XACT_LOCK",
        "RANDOM",
        "SET_CONFIG",
        "SETVAL",
        "TIMEOFDAY",
        "UUIDV4",
        "UUIDV7",
    }
)
# Words before a parenthesis that are no functions, and expressions that look like functions but are immutable grammar.
_NOT_FUNCTIONS = frozenset(
    """ALL AND ANY ARRAY AS CASE CAST COALESCE DISTINCT ELSE EXCLUDED EXISTS GREATEST IN IS LEAST LIKE NOT NULLIF OR ROW
    SET SOME THEN WHEN WHERE""".split()
)
# String literals that statements may hold: what the schema itself says. Statuses and modes are words in capitals.
_OWN_LITERALS = re.compile(
    r"[A-Z][A-Z_]*|business_key:|beginning|first|fifo|broadcast|[0-]+|worn out|expired|null|infinity|\{\}|"
    r"[a-z_]+ timed out|partition_count|idle_in_transaction_session_timeout|cascade_state.*|pg_[a-z]+|\s*"
)


def lint_statement(sql: str, *, name: str) -> list[Violation]:
    """Returns the rules that a statement breaks and that `ALLOWED` does not excuse for its name."""
    block = _parse(sql)
    found = [Violation(rule, name, reason) for rule, reason in _findings(block)]
    return [violation for violation in found if not _is_allowed(violation)]


def _is_allowed(violation: Violation) -> bool:
    return any(rule == violation.rule and fnmatchcase(violation.subject, pattern) for rule, pattern in ALLOWED)


def _findings(statement: _Block) -> Iterator[tuple[str, str]]:
    words = list(_words(statement))
    blocks = list(_blocks(statement))
    for block in blocks:
        yield from _check_locking(block)
        yield from _check_writing(block)
        yield from _check_conflict(block)
    yield from _check_clocks(words)
    if any(_kind(block) == "MERGE" for block in blocks):
        yield "S2", "MERGE does not work on distributed tables"
    if "CTID" in words:
        yield "S2", "a ctid means nothing across nodes"
    if ("PG_NOTIFY" in words or words[:1] == ["NOTIFY"]) and any(_kind(block) in _WRITES for block in blocks):
        yield "S4", "a notification inside a writing statement may be sent on another node, where nobody listens"
    for literal in _strings(statement):
        if not _OWN_LITERALS.fullmatch(literal):
            yield "S6", "a string is written into the statement; values are bound"
    if "SERIALIZABLE" in words:
        yield "S7", "nothing may need SERIALIZABLE"
    if words[:2] == ["CREATE", "TRIGGER"]:
        yield "D4", "distributed tables have no triggers"


def _check_locking(block: _Block) -> Iterator[tuple[str, str]]:
    own = _own_words(block)
    grammar = " ".join(word for word in own if not word.startswith('"'))
    if not re.search(r"\bFOR (NO KEY )?(UPDATE|SHARE)\b|\bFOR KEY SHARE\b", grammar):
        return
    if "FROM" in own and "JOIN" not in own and own[own.index("FROM") + 1] in _REFERENCE_TABLES:
        return
    names_one = any(
        own[index : index + 2] == ["PARTITION_ID", "="] and (own[index + 2].startswith("$") or own[index + 2].isdigit())
        for index in range(len(own) - 2)
    )
    if not names_one:
        yield "S1", "locks rows without naming one partition"


def _check_writing(block: _Block) -> Iterator[tuple[str, str]]:
    kind = _kind(block)
    if kind not in ("UPDATE", "DELETE"):
        return
    # A volatile function is allowed inside a subquery; it is evaluated before the rows are written.
    for word in sorted(_VOLATILE.intersection(_words(block, subqueries=False))):
        yield "S2", f"{kind} uses the volatile function {word.lower()}"
    own = _own_words(block)
    if kind == "UPDATE" and "SET" in own:
        assigned = own[own.index("SET") :]
        stop = min((assigned.index(word) for word in ("FROM", "WHERE", "RETURNING") if word in assigned), default=None)
        if re.search(r"(SET|,) PARTITION_ID =", " ".join(assigned[:stop])):
            yield "D2", "a row's partition never changes"


def _check_conflict(block: _Block) -> Iterator[tuple[str, str]]:
    own = [item.upper() if isinstance(item, str) else item for item in block]
    starts = [index for index in range(len(own) - 1) if own[index : index + 2] == ["DO", "UPDATE"]]
    for start in starts:
        stop = own.index("RETURNING", start) if "RETURNING" in own[start:] else len(own)
        yield from _check_conflict_expression(own[start + 2 : stop])


def _check_conflict_expression(items: Sequence[str | _Block]) -> Iterator[tuple[str, str]]:
    for index, item in enumerate(items):
        if isinstance(item, str):
            continue
        if _kind(item) is not None:
            yield "S2", "ON CONFLICT DO UPDATE holds a subquery"
            continue
        before = items[index - 1] if index else ""
        if isinstance(before, str) and before[:1].isalpha() and before.upper() not in _NOT_FUNCTIONS:
            yield "S2", f"ON CONFLICT DO UPDATE calls {before.lower()}"
        yield from _check_conflict_expression(item)


def _check_clocks(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    clocks = _CLOCKS.intersection(words)
    if "CLOCK_TIMESTAMP" in clocks or "TIMEOFDAY" in clocks:
        yield "S3", "the clock goes on while the statement runs"
    elif len(clocks) > 1:
        yield "S3", f"uses several clocks: {', '.join(sorted(clocks)).lower()}"


def _parse(sql: str) -> _Block:
    """Returns the tokens of a statement, with a nested list for each pair of parentheses."""
    stack: list[_Block] = [[]]
    for token in _TOKEN.findall(sql):
        if token.startswith(("--", "/*")):
            continue
        if token == "(":  # noqa: S105 - a parenthesis
            stack.append([])
        elif token == ")" and len(stack) > 1:  # noqa: S105 - a parenthesis
            finished = stack.pop()
            stack[-1].append(finished)
        else:
            stack[-1].append(token)
    return stack[0]


def _kind(block: _Block) -> str | None:
    """Returns which kind of statement a block is, past its WITH; None: an expression or a list."""
    for word in _own_words(block):
        if word in _KINDS:
            return word
        if word not in ("WITH", "AS", "RECURSIVE", "MATERIALIZED", "NOT", ",") and block and not _starts_with(block):
            return None
    return None


def _starts_with(block: _Block) -> bool:
    first = block[0]
    return isinstance(first, str) and first.upper() == "WITH"


def _blocks(block: _Block) -> Iterator[_Block]:
    yield block
    for item in block:
        if not isinstance(item, str):
            yield from _blocks(item)


def _own_words(block: _Block) -> list[str]:
    return [item.upper() for item in block if isinstance(item, str) and not item.startswith("'")]


def _words(block: _Block, *, subqueries: bool = True) -> Iterator[str]:
    for item in block:
        if isinstance(item, str):
            if not item.startswith("'"):
                yield item.upper()
        elif subqueries or _kind(item) is None:
            yield from _words(item, subqueries=subqueries)


def _strings(block: _Block) -> Iterator[str]:
    for item in block:
        if not isinstance(item, str):
            yield from _strings(item)
        elif item.startswith("'"):
            yield item[1:-1].replace("''", "'")
