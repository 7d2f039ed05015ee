"""Did a test leave connections open to its database? Who still holds one, and what did it do last?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cascade_state.testing.pytest_plugin.run import Run

if TYPE_CHECKING:
    from cascade_state.testing.pytest_plugin.reporting import Use
    from cascade_state.testing.sessions import Session

__all__ = ["check_connections"]

_STATEMENT_LIMIT = 500


def check_connections(run: Run, item: pytest.Item, use: Use) -> None:
    """Fails a test that passed so far but left connections open; one that failed has its reason already."""
    if use.failed or not run.options.leak_check or item.get_closest_marker("leaves_connections") is not None:
        return
    sessions = run.databases.sessions_left(use.database)
    if sessions:
        lines = [f"{item.nodeid} left {_counted(len(sessions))} open to its database {use.database.name}:"]
        lines += [_described(session) for session in sessions]
        lines.append("Close what the test opened (dispose of engines); or mark the test with `leaves_connections`.")
        pytest.fail("\n".join(lines), pytrace=False)


def _counted(count: int) -> str:
    return "a connection" if count == 1 else f"{count} connections"


def _described(session: Session) -> str:
    statement = session.statement
    if len(statement) > _STATEMENT_LIMIT:
        statement = f"{statement[:_STATEMENT_LIMIT]}…"
    name = session.application_name or "without application_name"
    return f"  pid {session.process_id} ({name}), {session.state}, last statement: {statement or 'none'}"
