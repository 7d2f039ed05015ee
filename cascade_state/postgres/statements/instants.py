"""The statement that asks for the time."""

from __future__ import annotations

from sqlalchemy import select

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import NOW

__all__ = ["CURRENT_INSTANT"]

CURRENT_INSTANT = Statement("instants.current", lambda: select(NOW.label("instant")))
