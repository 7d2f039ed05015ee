"""Arguments that nobody meant: whatever is passed, only errors of the tree come back."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from cascade_state.abc import Store
from cascade_state.errors import (
    CascadeStateError,
)
from cascade_state.model.correlations import DeadLetter
from cascade_state.model.events import FlowEvent
from cascade_state.model.export import ExportDocument, ExportedFlow, export_document
from cascade_state.model.feeds import FeedBatch
from cascade_state.model.filters import FlowInstanceFilter
from cascade_state.model.flow_status import TERMINAL_STATUSES
from cascade_state.testing import factories
from cascade_state.testing.contracts.base import StoreContract
from cascade_state.testing.contracts.calls import REPOSITORIES, public_methods
from cascade_state.testing.contracts.rules import rule

__all__ = ["HostileArgumentsContract"]

_AT = datetime(2030, 1, 1, tzinfo=UTC)
_DEFINITION = factories.flow_definition("hostile", version=1)
_FLOW = factories.running_flow(_DEFINITION)
_STORED = replace(_FLOW, version=1, created_at=_AT, updated_at=_AT)
_TIMER = factories.timer(held=factories.lease())
_DELIVERY = factories.delivery(held=factories.lease())
_EVENT = FlowEvent(flow_instance_id=_FLOW.flow_instance_id, sequence=1, event_type="x", recorded_at=_AT, position="")
_BATCH = FeedBatch(consumer="invoices", partition_id=3, after="", events=(_EVENT,))

# A usable value for every parameter of the contract, by its name.
_USABLE: dict[str, Any] = {
    "after": timedelta(seconds=1),
    "batch": _BATCH,
    "before": _AT,
    "business_key": "order-1",
    "cancel": [],
    "completes": [],
    "consumer": "invoices",
    "correlation_key": "parcel-77",
    "cursor": None,
    "dead_letter": DeadLetter(
        correlation_key="parcel-77", event_id="evt-1", payload={}, published_at=_AT, reason="expired"
    ),
    "definition": _DEFINITION,
    "deliveries": [_DELIVERY],
    "delivery": _DELIVERY,
    "document": export_document(ExportDocument(definitions=(_DEFINITION,), flows=(ExportedFlow(instance=_STORED),))),
    "dry_run": True,
    "orphans": True,
    "skip_locked": True,
    "due_at": None,
    "error": "late",
    "event_id": "evt-1",
    "events": [],
    "expected_version": None,
    "expires_at": None,
    "filter": None,
    "flow_id": "hostile",
    "flow_instance_id": _FLOW.flow_instance_id,
    "force": False,
    "holder": "worker-1",
    "idle_timeout": None,
    "idempotency_key": None,
    "instance": _FLOW,
    "instances": [],
    "keep": [],
    "lease": None,
    "lease_duration": timedelta(seconds=1),
    "limit": 10,
    "max_attempts": None,
    "metadata": None,
    "mode": "first",
    "page_size": 10,
    "partition_id": 3,
    "partitions": [3],
    "payload": {},
    "put_states": None,
    "reason": "enough",
    "remove_states": [],
    "replica_set": "shipping",
    "schedule": [],
    "stale_after": timedelta(seconds=1),
    "start": "now",
    "state": {},
    "statuses": list(TERMINAL_STATUSES),
    "step_id": "ship",
    "timer": _TIMER,
    "timer_id": _TIMER.timer_id,
    "timers": [_TIMER],
    "version": None,
    "worker_id": "worker-1",
}

# `events.read` continues behind a position, which is text; elsewhere `after` is a duration.
_USABLE_HERE: dict[tuple[str, str], Any] = {("events.read", "after"): None}

_HOSTILE: dict[str, Any] = {
    "None": None,
    "an object": object(),
    "nothing": "",
    "NUL": "a\0b",
    "half a character": "a\ud800",
    "a long text": "x" * 2_000_000,
    "600 bytes": "é" * 300,
    "bytes": b"abc",
    "zero": 0,
    "a negative": -1,
    "a big integer": 10**30,
    "64 bits": 2**63,
    "not a number": float("nan"),
    "infinity": float("inf"),
    "true": True,
    "a set": {1},
    "a list of nothing": [None],
    "an empty list": [],
    "an empty object": {},
    "keys that are no text": {1: 2},
    "a naive instant": datetime(2030, 1, 1),  # noqa: DTZ001 - that is the point
    "the first instant": datetime.min.replace(tzinfo=UTC),
    "the last instant": datetime.max.replace(tzinfo=UTC),
    "the last instant elsewhere": datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))),
    "the longest duration": timedelta.max,
    "a negative duration": -timedelta(seconds=1),
    "the nil id": UUID(int=0),
    "the last id": UUID(int=2**128 - 1),
    "a filter of the impossible": FlowInstanceFilter(flow_version=2**70),
    "a filter with a NUL": FlowInstanceFilter(flow_id="a\0b"),
    "a filter of everything": FlowInstanceFilter(search_attributes={"a": [{"b": object()}]}),
    "a timer nobody has": factories.timer(held=factories.lease(token=2**63)),
    "a delivery nobody has": factories.delivery(held=factories.lease(token=2**63)),
    "a lease nobody gave": factories.lease("a\0b", token=2**63),
}


def _method(target: Store, name: str) -> Callable[..., Any]:
    repository, _, method = name.rpartition(".")
    return getattr(getattr(target, repository) if repository else target, method)  # type: ignore[no-any-return]


def _parameters(name: str) -> list[str]:
    repository, _, method = name.rpartition(".")
    owner = REPOSITORIES[repository] if repository else Store
    return [parameter for parameter in inspect.signature(getattr(owner, method)).parameters if parameter != "self"]


async def _run(method: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    result = method(**arguments)
    if inspect.isasyncgen(result):
        async for _ in result:
            pass
    else:
        await result


class HostileArgumentsContract(StoreContract):
    """Whatever a caller passes, only errors of the tree come back, or Python's own for a wrong type."""

    @rule("Errors", "C-10")
    @pytest.mark.parametrize("name", sorted(set(public_methods()) - {"flow_instances.write"}))
    async def test_only_errors_of_the_tree_are_raised(self, store: Store, name: str) -> None:
        await store.flow_definitions.deploy(replace(_DEFINITION, version=None, deployed_at=None))
        usable = {
            parameter: _USABLE_HERE.get((name, parameter), _USABLE.get(parameter)) for parameter in _parameters(name)
        }
        if name == "timers.schedule":
            usable["after"] = timedelta(seconds=1)
        for parameter in usable:
            assert parameter in _USABLE, f"say what is usable for {parameter} of {name}"
            for called, hostile in _HOSTILE.items():
                try:
                    await _run(_method(store, name), {**usable, parameter: hostile})
                except CascadeStateError:
                    pass
                except Exception as error:
                    if not isinstance(error, TypeError | AttributeError) or _shows_internals(error):
                        pytest.fail(f"{parameter}={called}: {error!r}")
                assert await store.flow_instances.count() <= 1  # the store still answers

    @rule("Errors")
    @pytest.mark.parametrize("options", [{"isolation": 7}, {"isolation": "\0"}])
    async def test_a_unit_of_work_refuses_unusable_options(self, store: Store, options: dict[str, Any]) -> None:
        with pytest.raises(CascadeStateError):
            store.begin(**options)


def _shows_internals(error: BaseException) -> bool:
    """Whether Python's own error comes from below the contract: from a driver, or from SQLAlchemy."""
    modules = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    return any(part in module for module in modules for part in ("asyncpg", "sqlalchemy"))
