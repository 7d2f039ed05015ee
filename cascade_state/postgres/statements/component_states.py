"""Statements about component states.

A put has one of three forms: over whatever is there, only where nothing is, or only over a given version.
Each is one statement, so the versions that it compares are those it writes over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    and_,
    case,
    cast,
    delete,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from cascade_state.postgres.direct import Statement
from cascade_state.postgres.statements.parameters import (
    BIGINT,
    INSTANT,
    INTEGER,
    JSON_DOCUMENT,
    NOW,
    TEXT,
    UUID_VALUE,
    param,
    relation,
    scalars,
)
from cascade_state.postgres.tables import component_states, flow_instances

__all__ = [
    "ADD",
    "DIAGNOSE_PUT",
    "FIND",
    "KEY_COLUMNS",
    "LIST",
    "OVERWRITE",
    "PUT_COLUMNS",
    "REMOVE",
    "REPLACE",
    "state_columns",
]

_state = component_states.c
_FIRST = literal_column("1", BIGINT)  # the version of a state that was not there, or had expired

KEY_COLUMNS = {"partition_id": INTEGER, "flow_instance_id": UUID_VALUE, "step_id": TEXT}
PUT_COLUMNS = {**KEY_COLUMNS, "state": JSON_DOCUMENT, "expires_at": INSTANT, "expected_version": BIGINT}


def state_columns() -> tuple[ColumnElement[Any], ...]:
    """The columns that make a component state."""
    return (
        _state.flow_instance_id,
        _state.step_id,
        cast(_state.state, Text).label("state"),
        _state.version,
        _state.expires_at,
        _state.updated_at,
    )


def _both(name: str, build: Callable[[Any], Any], given: str, types: dict[str, Any]) -> tuple[Statement, Statement]:
    """Returns the form of a statement for one item of scalars, and that for a batch."""
    return (
        Statement(f"component_states.{name}.one", lambda: build(scalars(given, types))),
        Statement(f"component_states.{name}.batch", lambda: build(relation(given, {"item": INTEGER, **types}))),
    )


def _same_state(given: Any) -> ColumnElement[bool]:
    return and_(
        _state.partition_id == given.c.partition_id,
        _state.flow_instance_id == given.c.flow_instance_id,
        _state.step_id == given.c.step_id,
    )


def _is_alive() -> ColumnElement[bool]:
    return or_(_state.expires_at.is_(None), _state.expires_at > NOW)


def _find(query: Select[Any]) -> Select[Any]:
    wanted = query.subquery("wanted")
    return (
        select(wanted.c.item, *state_columns())
        .join_from(wanted, component_states, _same_state(wanted))
        .where(_is_alive())
    )


def _insert(query: Select[Any], *, only_new: bool) -> Select[Any]:
    """Inserts states of stored flows, over expired states and, unless `only_new`, over living ones, too."""
    given = query.cte("given")
    flow = flow_instances
    rows = (
        select(
            given.c.partition_id,
            given.c.flow_instance_id,
            given.c.step_id,
            given.c.state,
            _FIRST.label("version"),
            given.c.expires_at,
            NOW.label("updated_at"),
        )
        .join_from(
            given,
            flow,
            and_(
                flow.c.partition_id == given.c.partition_id,
                flow.c.flow_instance_id == given.c.flow_instance_id,
            ),
        )
        # The lock that the foreign key takes anyway, early: a removal under way is waited for and then seen.
        .with_for_update(of=flow, key_share=True, read=True)
    )
    statement = insert(component_states).from_select([column.name for column in rows.selected_columns], rows)
    new = statement.excluded
    expired = _state.expires_at <= new.updated_at
    version = _FIRST if only_new else case((expired, _FIRST), else_=_state.version + _FIRST)
    written = (
        statement.on_conflict_do_update(
            index_elements=["partition_id", "flow_instance_id", "step_id"],
            set_={
                "state": new.state,
                "version": version,
                "expires_at": new.expires_at,
                "updated_at": new.updated_at,
            },
            where=expired if only_new else None,
        )
        .returning(_state.partition_id, _state.flow_instance_id, _state.step_id, _state.version, _state.updated_at)
        .cte("written")
    )
    return select(given.c.item, written.c.version, written.c.updated_at).join_from(
        given,
        written,
        and_(written.c.flow_instance_id == given.c.flow_instance_id, written.c.step_id == given.c.step_id),
    )


def _replace(query: Select[Any]) -> Any:
    given = query.subquery("given")
    return (
        update(component_states)
        .where(_same_state(given), _state.version == given.c.expected_version, _is_alive())
        .values(
            state=given.c.state,
            version=_state.version + _FIRST,
            expires_at=given.c.expires_at,
            updated_at=NOW,
        )
        .returning(given.c.item, _state.version, _state.updated_at)
    )


FIND = _both("find", _find, "wanted", KEY_COLUMNS)
OVERWRITE = _both("overwrite", lambda given: _insert(given, only_new=False), "given", PUT_COLUMNS)
ADD = _both("add", lambda given: _insert(given, only_new=True), "given", PUT_COLUMNS)
REPLACE = _both("replace", _replace, "given", PUT_COLUMNS)


def _is_this() -> ColumnElement[bool]:
    return and_(
        _state.partition_id == param("partition_id", INTEGER),
        _state.flow_instance_id == param("flow_instance_id", UUID_VALUE),
    )


def _diagnose_put() -> Select[Any]:
    """Whether the flow exists, and the version of its state (NULL: there is none that has not expired)."""
    flow = flow_instances
    return (
        select(_state.version)
        .outerjoin_from(
            flow,
            component_states,
            and_(
                _state.partition_id == flow.c.partition_id,
                _state.flow_instance_id == flow.c.flow_instance_id,
                _state.step_id == param("step_id", TEXT),
                _is_alive(),
            ),
        )
        .where(
            flow.c.partition_id == param("partition_id", INTEGER),
            flow.c.flow_instance_id == param("flow_instance_id", UUID_VALUE),
        )
    )


DIAGNOSE_PUT = Statement("component_states.diagnose_put", _diagnose_put)
REMOVE = Statement(
    "component_states.remove",
    # Whether there was one is told as a reader would have seen it: an expired state goes, but was not there.
    lambda: (
        delete(component_states)
        .where(_is_this(), _state.step_id == param("step_id", TEXT))
        .returning(_is_alive().label("was_alive"))
    ),
)
LIST = Statement(
    "component_states.list_for_instance",
    lambda: (
        select(*state_columns())
        .where(_is_this(), _state.step_id > param("after", TEXT), _is_alive())
        .order_by(_state.step_id)
        .limit(param("limit", BIGINT))
    ),
)
