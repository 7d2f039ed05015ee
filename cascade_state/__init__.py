"""The durable state of flows: definitions, instances, states, correlations and timers; on PostgreSQL or in memory.

Everything that an application needs is re-exported here; importing it imports no database library. Each name is loaded
when it is first used, because the pytest plugin makes every test run of the environment import this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cascade_state.abc.capabilities import Capabilities
    from cascade_state.abc.flow_instances import AddResult
    from cascade_state.abc.hints import HintListener
    from cascade_state.abc.locks import HeldLock, Locks
    from cascade_state.abc.store import Store
    from cascade_state.abc.unit_of_work import UnitOfWork
    from cascade_state.clock import Clock
    from cascade_state.coordination.backoff import Backoff
    from cascade_state.coordination.feed_consumer import FeedConsumer
    from cascade_state.errors import (
        AlreadyExists,
        CascadeStateError,
        ComponentStateNotFound,
        Conflict,
        DatabaseAlreadyExists,
        DatabaseDiscarded,
        DatabaseInUse,
        DatabaseNotFound,
        FeedConsumerNotFound,
        FlowDefinitionInUse,
        FlowDefinitionNotFound,
        FlowInstanceNotFound,
        InvalidArgument,
        InvalidDatabaseName,
        InvalidDefinition,
        InvalidTransition,
        LeaseLost,
        LockLost,
        LockNotAcquired,
        NotFound,
        PermissionDenied,
        PoolClosed,
        PoolTimeout,
        SchemaMismatch,
        SerializationError,
        ServerUnavailable,
        StoreError,
        StoreNotOpen,
        StoreUnavailable,
        TemplateBusy,
        TemplateNotFound,
        TestDatabaseError,
        TimerNotFound,
        TransactionAborted,
        UnitOfWorkFinished,
        UnitOfWorkNotOpen,
        UsageError,
        VersionConflict,
    )
    from cascade_state.ids import new_flow_instance_id, partition_of, partition_of_key
    from cascade_state.model.component_states import ComponentState
    from cascade_state.model.correlations import Correlation, DeadLetter, Delivery
    from cascade_state.model.events import FlowEvent, NewEvent
    from cascade_state.model.feeds import FeedBatch, FeedFailure, FeedLag, FeedNews, RegisteredConsumer
    from cascade_state.model.filters import FlowInstanceFilter
    from cascade_state.model.flow_definitions import Condition, FlowDefinition, StepDefinition, Trigger
    from cascade_state.model.flow_instances import FlowInstance
    from cascade_state.model.flow_status import FlowStatus, StepStatus
    from cascade_state.model.leases import Lease
    from cascade_state.model.lists import CursorList, Page
    from cascade_state.model.locks import LockInfo
    from cascade_state.model.replica_sets import Membership, PartitionAssignment, RegisteredWorker
    from cascade_state.model.statistics import Statistics
    from cascade_state.model.step_results import StepResult
    from cascade_state.model.timers import ScheduleTimer, Timer, TimerStatus
    from cascade_state.opening import open_store
    from cascade_state.types import JsonObject, JsonValue

__all__ = [
    "AddResult",
    "AlreadyExists",
    "Backoff",
    "Capabilities",
    "CascadeStateError",
    "Clock",
    "ComponentState",
    "ComponentStateNotFound",
    "Condition",
    "Conflict",
    "Correlation",
    "CursorList",
    "DatabaseAlreadyExists",
    "DatabaseDiscarded",
    "DatabaseInUse",
    "DatabaseNotFound",
    "DeadLetter",
    "Delivery",
    "FeedBatch",
    "FeedConsumer",
    "FeedConsumerNotFound",
    "FeedFailure",
    "FeedLag",
    "FeedNews",
    "FlowDefinition",
    "FlowDefinitionInUse",
    "FlowDefinitionNotFound",
    "FlowEvent",
    "FlowInstance",
    "FlowInstanceFilter",
    "FlowInstanceNotFound",
    "FlowStatus",
    "HeldLock",
    "HintListener",
    "InvalidArgument",
    "InvalidDatabaseName",
    "InvalidDefinition",
    "InvalidTransition",
    "JsonObject",
    "JsonValue",
    "Lease",
    "LeaseLost",
    "LockInfo",
    "LockLost",
    "LockNotAcquired",
    "Locks",
    "Membership",
    "NewEvent",
    "NotFound",
    "Page",
    "PartitionAssignment",
    "PermissionDenied",
    "PoolClosed",
    "PoolTimeout",
    "RegisteredConsumer",
    "RegisteredWorker",
    "ScheduleTimer",
    "SchemaMismatch",
    "SerializationError",
    "ServerUnavailable",
    "Statistics",
    "StepDefinition",
    "StepResult",
    "StepStatus",
    "Store",
    "StoreError",
    "StoreNotOpen",
    "StoreUnavailable",
    "TemplateBusy",
    "TemplateNotFound",
    "TestDatabaseError",
    "Timer",
    "TimerNotFound",
    "TimerStatus",
    "TransactionAborted",
    "Trigger",
    "UnitOfWork",
    "UnitOfWorkFinished",
    "UnitOfWorkNotOpen",
    "UsageError",
    "VersionConflict",
    "new_flow_instance_id",
    "open_store",
    "partition_of",
    "partition_of_key",
]

_HOMES = {
    "AddResult": "abc.flow_instances",
    "AlreadyExists": "errors",
    "Backoff": "coordination.backoff",
    "Capabilities": "abc.capabilities",
    "CascadeStateError": "errors",
    "Clock": "clock",
    "ComponentState": "model.component_states",
    "ComponentStateNotFound": "errors",
    "Condition": "model.flow_definitions",
    "Conflict": "errors",
    "Correlation": "model.correlations",
    "CursorList": "model.lists",
    "DatabaseAlreadyExists": "errors",
    "DatabaseDiscarded": "errors",
    "DatabaseInUse": "errors",
    "DatabaseNotFound": "errors",
    "DeadLetter": "model.correlations",
    "Delivery": "model.correlations",
    "FeedBatch": "model.feeds",
    "FeedConsumer": "coordination.feed_consumer",
    "FeedConsumerNotFound": "errors",
    "FeedFailure": "model.feeds",
    "FeedLag": "model.feeds",
    "FeedNews": "model.feeds",
    "FlowDefinition": "model.flow_definitions",
    "FlowDefinitionInUse": "errors",
    "FlowDefinitionNotFound": "errors",
    "FlowEvent": "model.events",
    "FlowInstance": "model.flow_instances",
    "FlowInstanceFilter": "model.filters",
    "FlowInstanceNotFound": "errors",
    "FlowStatus": "model.flow_status",
    "HeldLock": "abc.locks",
    "HintListener": "abc.hints",
    "InvalidArgument": "errors",
    "InvalidDatabaseName": "errors",
    "InvalidDefinition": "errors",
    "InvalidTransition": "errors",
    "JsonObject": "types",
    "JsonValue": "types",
    "Lease": "model.leases",
    "LeaseLost": "errors",
    "LockInfo": "model.locks",
    "LockLost": "errors",
    "LockNotAcquired": "errors",
    "Locks": "abc.locks",
    "Membership": "model.replica_sets",
    "NewEvent": "model.events",
    "NotFound": "errors",
    "Page": "model.lists",
    "PartitionAssignment": "model.replica_sets",
    "PermissionDenied": "errors",
    "PoolClosed": "errors",
    "PoolTimeout": "errors",
    "RegisteredConsumer": "model.feeds",
    "RegisteredWorker": "model.replica_sets",
    "ScheduleTimer": "model.timers",
    "SchemaMismatch": "errors",
    "SerializationError": "errors",
    "ServerUnavailable": "errors",
    "Statistics": "model.statistics",
    "StepDefinition": "model.flow_definitions",
    "StepResult": "model.step_results",
    "StepStatus": "model.flow_status",
    "Store": "abc.store",
    "StoreError": "errors",
    "StoreNotOpen": "errors",
    "StoreUnavailable": "errors",
    "TemplateBusy": "errors",
    "TemplateNotFound": "errors",
    "TestDatabaseError": "errors",
    "Timer": "model.timers",
    "TimerNotFound": "errors",
    "TimerStatus": "model.timers",
    "TransactionAborted": "errors",
    "Trigger": "model.flow_definitions",
    "UnitOfWork": "abc.unit_of_work",
    "UnitOfWorkFinished": "errors",
    "UnitOfWorkNotOpen": "errors",
    "UsageError": "errors",
    "VersionConflict": "errors",
    "new_flow_instance_id": "ids",
    "open_store": "opening",
    "partition_of": "ids",
    "partition_of_key": "ids",
}

_ROOMS = ("abc", "clock", "errors", "ids", "model", "types")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
