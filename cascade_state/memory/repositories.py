"""Gives a store or a unit of work its repositories."""

from __future__ import annotations

from cascade_state.abc.guards import Guard
from cascade_state.abc.store import Store
from cascade_state.abc.unit_of_work import UnitOfWork
from cascade_state.memory.component_states import MemoryComponentStates
from cascade_state.memory.correlations import MemoryCorrelations
from cascade_state.memory.events import MemoryEvents
from cascade_state.memory.feeds import MemoryFeeds
from cascade_state.memory.flow_definitions import MemoryFlowDefinitions
from cascade_state.memory.flow_instances import MemoryFlowInstances
from cascade_state.memory.replica_sets import MemoryReplicaSets
from cascade_state.memory.runners import Runner
from cascade_state.memory.timers import MemoryTimers
from cascade_state.model.advance import Limits

__all__ = ["attach_repositories"]


def attach_repositories(owner: Store | UnitOfWork, runner: Runner, guard: Guard, limits: Limits) -> None:
    """Sets the repositories of `owner`, whose calls `runner` runs."""
    owner.flow_definitions = MemoryFlowDefinitions(runner, guard, limits)
    owner.flow_instances = MemoryFlowInstances(runner, guard, limits)
    owner.component_states = MemoryComponentStates(runner, guard, limits)
    owner.correlations = MemoryCorrelations(runner, guard, limits)
    owner.timers = MemoryTimers(runner, guard, limits)
    owner.events = MemoryEvents(runner, guard, limits)
    owner.replica_sets = MemoryReplicaSets(runner, guard, limits)
    owner.feeds = MemoryFeeds(runner, guard, limits)
