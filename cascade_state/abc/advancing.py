"""`advance`, the one call that stores a step: the same on a store and in a unit of work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

from cascade_state.abc.flow_instances import FlowInstances
from cascade_state.model.advance import AdvancePlan, Limits, plan_advance
from cascade_state.model.correlations import Delivery
from cascade_state.model.events import NewEvent
from cascade_state.model.flow_instances import FlowInstance
from cascade_state.model.leases import Lease
from cascade_state.model.timers import ScheduleTimer, Timer
from cascade_state.types import JsonValue

__all__ = ["Advancing"]


class Advancing:
    """Something that can advance a flow instance."""

    flow_instances: FlowInstances
    _limits: Limits

    async def advance(
        self,
        instance: FlowInstance,
        *,
        lease: Lease | None = None,
        put_states: Mapping[str, JsonValue] | None = None,
        remove_states: Iterable[str] = (),
        schedule: Iterable[ScheduleTimer] = (),
        cancel: Iterable[UUID] = (),
        completes: Iterable[Timer | Delivery] = (),
        events: Iterable[NewEvent] = (),
    ) -> FlowInstance:
        """Stores a flow's pending changes and the extras, all or nothing, and returns it a version later (C-20).

        A flow that was never stored (version 0) is inserted. On PostgreSQL this is one statement and one
        round trip, at a cost that does not grow with the steps already finished; one more round trip when a
        wait is added (C-21). It locks the flow's row until the transaction ends.

        Args:
            lease: The lease under which the flow was claimed; without it only the version is checked.
            put_states: Component states to store, by step id.
            remove_states: Step ids whose component states go.
            schedule: Timers to make besides those of `suspend_for_timer`.
            cancel: Ids of timers to remove; one that is gone already does not matter.
            completes: Claimed timers and deliveries to acknowledge.
            events: History events to append after those of the transitions.

        Raises:
            VersionConflict: The flow was stored by somebody else since it was read; nothing was written
                (C-22).
            LeaseLost: `lease`, or the lease of something in `completes`, is not current; nothing was written
                (C-23).
            FlowInstanceNotFound: The flow was removed.
            AlreadyExists: The flow is new, and its id or business key is taken.
            FlowDefinitionNotFound: The flow is new, and its definition is not deployed.
            InvalidTransition: A timer is scheduled on a flow that has ended.
            InvalidArgument: A value cannot be stored; nothing was sent.
        """
        plan = plan_advance(
            instance,
            limits=self._limits,
            lease=lease,
            put_states=put_states,
            remove_states=remove_states,
            schedule=schedule,
            cancel=cancel,
            completes=completes,
            events=events,
        )
        return await self._write(plan)

    async def _write(self, plan: AdvancePlan) -> FlowInstance:
        return await self.flow_instances.write(plan)
