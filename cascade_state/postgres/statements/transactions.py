"""Statements about the transaction that they run in."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, literal_column, select

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import TEXT, param

__all__ = ["SET_LOCAL"]


def _set_local() -> Select[Any]:
    return select(func.set_config(param("name", TEXT), param("value", TEXT), literal_column("true")))


SET_LOCAL = Statement("transactions.set_local", _set_local)
