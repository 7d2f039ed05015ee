"""Everybody outside: reads the store's feed of history events and publishes what the scenario plans, in time."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from cascade_state import Clock, FlowEvent, FlowInstance, Store
from cascade_state.demo.scenario import Moment, PlannedEvent, PlannedFlow, Scenario

__all__ = ["World"]

_ENDINGS = ("flow_instance.completed", "flow_instance.failed", "flow_instance.cancelled")
_PAGE = 1000


@dataclass
class World:
    """The outside world of a scenario, as one process sees it.

    `history` is all that the feed handed out, by flow; `published` counts publications by moment.
    """

    store: Store
    scenario: Scenario
    clock: Clock | None = None  # that of the store; None: the database's, which is near enough this machine's
    history: dict[UUID, list[FlowEvent]] = field(default_factory=lambda: defaultdict(list))
    published: Counter[Moment] = field(default_factory=Counter)
    event_ids: set[str] = field(default_factory=set)
    duplicates: int = 0
    ended: int = 0
    steps_done: int = 0

    def __post_init__(self) -> None:
        self._position: str | None = None
        self._plans: dict[UUID, PlannedFlow] = {}
        self._by_key: dict[tuple[str, Moment], list[PlannedEvent]] = defaultdict(list)
        for flow in self.scenario.all_flows():
            for event in flow.events:
                self._by_key[event.correlation_key, event.moment].append(event)
        self._deadlines: list[tuple[datetime, PlannedEvent]] = []

    async def begin(self) -> None:
        """Deploys nothing and waits for nothing: publishes the early events, then adds all flows in one call.

        Raises:
            CascadeStateError: A flow could not be added.
        """
        for flow in self.scenario.all_flows():
            await self._publish([event for event in flow.events if event.moment is Moment.BEFORE])
        definitions = {item.flow_id: item for item in await self.store.flow_definitions.list_latest()}
        instances = [
            FlowInstance.create(
                definitions[flow.flow_id],
                trigger_data=flow.trigger_data,
                business_key=flow.business_key,
                search_attributes={"story": flow.story},
            )
            for flow in self.scenario.flows
        ]
        self._plans = {
            instance.flow_instance_id: flow for instance, flow in zip(instances, self.scenario.flows, strict=True)
        }
        for result in await self.store.flow_instances.add_many(instances):
            if result.error is not None:
                raise result.error

    async def observe(self) -> int:
        """Reads what is new in the feed, reacts to it, and returns how much it was."""
        total = 0
        while events := await self.store.events.read(after=self._position, limit=_PAGE):
            self._position = events[-1].position
            total += len(events)
            for event in events:
                self.history[event.flow_instance_id].append(event)
                await self._react(event)
        now = datetime.now(UTC) if self.clock is None else self.clock.now()
        due = [event for due_at, event in self._deadlines if due_at <= now]
        self._deadlines = [item for item in self._deadlines if item[0] > now]
        await self._publish(due)
        return total + len(due)

    async def _react(self, event: FlowEvent) -> None:
        plan = self._plans.get(event.flow_instance_id)
        if event.event_type == "flow_instance.suspended_for_event":
            key = event.payload["correlation_key"]
            await self._publish(self._take(key, Moment.WAITING))
            for late in self._take(key, Moment.DEADLINE):
                seconds = plan.trigger_data["pick_up_seconds"] if plan is not None else 0
                self._deadlines.append((event.recorded_at + timedelta(seconds=seconds), late))
        elif event.event_type == "step.completed":
            self.steps_done += 1
            if plan is not None and event.payload["step_id"] == "remind":
                for child in plan.children:
                    await self._publish(_at(child, Moment.REMINDED))
        elif event.event_type in _ENDINGS:
            self.ended += 1
            if plan is not None:
                for flow in plan.with_children():
                    await self._publish(_at(flow, Moment.ENDED))

    def _take(self, key: str, moment: Moment) -> list[PlannedEvent]:
        return self._by_key.pop((key, moment), [])

    async def _publish(self, events: list[PlannedEvent]) -> None:
        for event in events:
            await self.store.correlations.publish(
                event.correlation_key, event.payload, event_id=event.event_id, mode="first"
            )
            self.published[event.moment] += 1
            self.duplicates += event.event_id in self.event_ids
            self.event_ids.add(event.event_id)


def _at(flow: PlannedFlow, moment: Moment) -> list[PlannedEvent]:
    return [event for event in flow.events if event.moment is moment]
