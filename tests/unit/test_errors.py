from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any
from uuid import UUID

import pytest

import cascade_state
from cascade_state import errors
from cascade_state.errors import CascadeStateError

LONG = "k" * 10_000

# A value for every parameter that some error takes.
FACTS: dict[str, Any] = {
    "actual_version": 2,
    "application_name": "someone",
    "argument": "payload",
    "connections": ((1, "someone"),),
    "database": "db",
    "entity": "timer",
    "existing_id": UUID(int=1),
    "expected": "a",
    "expected_version": 1,
    "flow_id": LONG,
    "found": "b",
    "from_status": "RUNNING",
    "holder": LONG,
    "instance_count": 3,
    "key": LONG,
    "lock_name": ("a", 1),
    "log_tail": "said last",
    "message": "said",
    "path": "$.a",
    "process_id": 7,
    "reason": "because",
    "sqlstate": "40001",
    "step_id": "charge",
    "template": "template",
    "to_status": "COMPLETED",
    "token": 4,
    "waited": 0.25,
}
CLASSES = [getattr(errors, name) for name in errors.__all__]
CONCRETE = [cls for cls in CLASSES if cls is not CascadeStateError]


def made(cls: type[CascadeStateError]) -> CascadeStateError:
    parameters = [
        parameter
        for parameter in inspect.signature(cls).parameters.values()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    positional = [FACTS[item.name] for item in parameters if item.kind is not item.KEYWORD_ONLY]
    keyword = {item.name: FACTS[item.name] for item in parameters if item.kind is item.KEYWORD_ONLY}
    return cls(*positional, **keyword)


@pytest.mark.parametrize("cls", CONCRETE)
def test_an_error_pickles_and_copies_with_its_facts(cls: type[CascadeStateError]) -> None:
    error = made(cls)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - pickled here
        assert type(again) is cls
        assert str(again) == str(error)
        assert vars(again) == vars(error)


@pytest.mark.parametrize("cls", CONCRETE)
def test_an_error_says_something_in_one_short_line(cls: type[CascadeStateError]) -> None:
    text = str(made(cls))
    assert text
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize("cls", CONCRETE)
def test_an_error_keeps_its_facts_as_attributes(cls: type[CascadeStateError]) -> None:
    error = made(cls)
    for name in inspect.get_annotations(cls, eval_str=True):
        assert getattr(error, name) == FACTS[name], name


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_says_what_happened_and_is_in_the_tree(cls: type[CascadeStateError]) -> None:
    assert issubclass(cls, CascadeStateError)
    assert cls.__doc__
    assert cls.__name__ in (errors.__doc__ or "")


def test_the_tree_is_the_one_that_is_drawn() -> None:
    """The branches, and the built-in errors that some of them also are."""
    expected = {
        errors.UsageError: [CascadeStateError],
        errors.UnitOfWorkNotOpen: [errors.UsageError],
        errors.UnitOfWorkFinished: [errors.UsageError],
        errors.StoreNotOpen: [errors.UsageError],
        errors.InvalidTransition: [errors.UsageError, ValueError],
        errors.InvalidArgument: [errors.UsageError, ValueError],
        errors.InvalidDefinition: [errors.UsageError, ValueError],
        errors.NotFound: [CascadeStateError, LookupError],
        errors.FlowDefinitionNotFound: [errors.NotFound],
        errors.FlowInstanceNotFound: [errors.NotFound],
        errors.ComponentStateNotFound: [errors.NotFound],
        errors.TimerNotFound: [errors.NotFound],
        errors.Conflict: [CascadeStateError],
        errors.AlreadyExists: [errors.Conflict],
        errors.VersionConflict: [errors.Conflict],
        errors.LeaseLost: [errors.Conflict],
        errors.FlowDefinitionInUse: [errors.Conflict],
        errors.LockNotAcquired: [CascadeStateError, TimeoutError],
        errors.LockLost: [CascadeStateError],
        errors.StoreError: [CascadeStateError],
        errors.StoreUnavailable: [errors.StoreError],
        errors.TransactionAborted: [errors.StoreError],
        errors.SerializationError: [errors.StoreError],
        errors.SchemaMismatch: [errors.StoreError],
    }
    for cls, bases in expected.items():
        assert list(cls.__bases__) == bases, cls


def test_every_error_of_the_store_is_in_the_public_face() -> None:
    for cls in CLASSES:
        if not issubclass(cls, errors.TestDatabaseError):
            assert getattr(cascade_state, cls.__name__) is cls
