"""Runs the lint over every statement that the suite sends: a test that sends a forbidden one fails by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

from cascade_state.postgres import direct
from cascade_state.postgres.tables import metadata
from cascade_state.testing.sql_lint import lint_statement

__all__ = ["ForbiddenStatement", "watched_statements"]

_OURS = re.compile(rf"\b({'|'.join(metadata.tables)})\b")


class ForbiddenStatement(AssertionError):
    """A statement breaks a rule that no entry of the allow-list excuses."""


@contextmanager
def watched_statements() -> Iterator[dict[str, str]]:
    """Lints what is compiled for the direct path, and what SQLAlchemy sends about our tables; collects it by name."""
    seen: dict[str, str] = {}

    def look(name: str, sql: str) -> None:
        seen[name] = sql
        found = lint_statement(sql, name=name)
        if found:
            raise ForbiddenStatement("\n".join(map(str, found)) + f"\n{sql}")

    def before_cursor_execute(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if re.match(r"\s*(INSERT|UPDATE|DELETE|SELECT|WITH|MERGE)\b", statement, re.IGNORECASE) and _OURS.search(
            statement
        ):
            look("sqlalchemy.settings" if "INTO settings" in statement else "sqlalchemy", statement)

    direct.on_statement.append(look)
    event.listen(Engine, "before_cursor_execute", before_cursor_execute)
    try:
        yield seen
    finally:
        direct.on_statement.remove(look)
        event.remove(Engine, "before_cursor_execute", before_cursor_execute)
