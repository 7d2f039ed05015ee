"""Makes the repositories of a store or unit of work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascade_state.abc.guards import Guard
from cascade_state.model.advance import Limits
from cascade_state.postgres.component_states import PostgresComponentStates
from cascade_state.postgres.correlations import PostgresCorrelations
from cascade_state.postgres.events import PostgresEvents
from cascade_state.postgres.executor import Executor
from cascade_state.postgres.feeds import PostgresFeeds
from cascade_state.postgres.flow_definitions import PostgresFlowDefinitions
from cascade_state.postgres.flow_instances import PostgresFlowInstances
from cascade_state.postgres.replica_sets import PostgresReplicaSets
from cascade_state.postgres.timers import PostgresTimers

if TYPE_CHECKING:
    from cascade_state.abc.store import Store
    from cascade_state.abc.unit_of_work import UnitOfWork

__all__ = ["attach_repositories"]


def attach_repositories(owner: Store | UnitOfWork, executor: Executor, guard: Guard, limits: Limits) -> None:
    """Gives `owner` its repositories, all on one executor."""
    owner.flow_definitions = PostgresFlowDefinitions(executor, guard, limits)
    owner.flow_instances = PostgresFlowInstances(executor, guard, limits)
    owner.component_states = PostgresComponentStates(executor, guard, limits)
    owner.correlations = PostgresCorrelations(executor, guard, limits)
    owner.timers = PostgresTimers(executor, guard, limits)
    owner.events = PostgresEvents(executor, guard, limits)
    owner.replica_sets = PostgresReplicaSets(executor, guard, limits)
    owner.feeds = PostgresFeeds(executor, guard, limits)
