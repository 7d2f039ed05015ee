"""What steps do. A component is told about one step (`Call`) and answers with an outcome; the engine stores it.

Components never touch the store: whatever they did in the outside world may happen again after a crash (at
least once), what they answer is stored exactly once. A component raises `TemporaryFailure` to be run again
later, `PermanentFailure` to end the flow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias

from cascade_state import Delivery, FlowInstance, JsonObject, StepDefinition, Timer

__all__ = [
    "Call",
    "Component",
    "Done",
    "KeepWaiting",
    "Outcome",
    "PermanentFailure",
    "RunAgain",
    "StartChildren",
    "TemporaryFailure",
    "WaitForEvent",
    "WaitForTimer",
    "standard_components",
]


class TemporaryFailure(Exception):
    """It did not work this time; run the step again later."""


class PermanentFailure(Exception):
    """It will never work; the flow fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One step of one flow, for which a component is called. `state` is the step's component state."""

    flow: FlowInstance
    step: StepDefinition
    inputs: JsonObject
    state: JsonObject = field(default_factory=dict)

    @property
    def attempt(self) -> int:
        """1 when the step runs for the first time."""
        return int(self.state.get("failures", 0)) + 1

    @property
    def pretence(self) -> JsonObject:
        """How the outside world is to behave towards this step, by the scenario."""
        behaviours = self.flow.trigger_data.get("pretend", {})
        found: JsonObject = behaviours.get(self.step.step_id, {})
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The step has completed. `amount` goes into the books (`effects`) in the same commit."""

    outputs: JsonObject = field(default_factory=dict)
    amount: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitForEvent:
    """The step waits for an event; if nothing came in time the wait expires, or the timer fires, whichever is given."""

    correlation_key: str
    expires_after: timedelta | None = None
    timer_after: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitForTimer:
    """The step waits for a while."""

    after: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class StartChildren:
    """Child flows are started, the step waits for their results. `trigger_data` is by the end of the business key."""

    flow_id: str
    trigger_data: Mapping[str, JsonObject]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepWaiting:
    """The step took something in, remembers it as its state, and waits for more of the same."""

    state: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAgain:
    """The pause after a failure is over."""


Outcome: TypeAlias = Done | WaitForEvent | WaitForTimer | StartChildren | KeepWaiting | RunAgain


class Component:
    """A kind of step. Every answer takes `latency`, as if it came over a network."""

    def __init__(self, latency: timedelta, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._latency = latency.total_seconds()
        self._pause = pause

    async def run(self, call: Call) -> Outcome:
        """Runs the step."""
        raise NotImplementedError

    async def on_delivery(self, call: Call, delivery: Delivery) -> Outcome:
        """Goes on with a step that waited for an event."""
        raise PermanentFailure(f"{call.step.component_type} does not wait for events")

    async def on_timer(self, call: Call, timer: Timer) -> Outcome:
        """Goes on with a step that waited for a timer: by default the pause after a failure."""
        return RunAgain()

    async def _answer(self, call: Call, attempt: int) -> None:
        """Waits for the world outside, which works, refuses, or is down for some attempts, as the scenario pretends."""
        await self._pause(call.pretence.get("takes_seconds", self._latency))
        if "refuses" in call.pretence:
            raise PermanentFailure(call.pretence["refuses"])
        if attempt <= call.pretence.get("down_for_attempts", 0):
            raise TemporaryFailure(f"{call.step.step_id} is down")


class Service(Component):
    """Calls a service outside."""

    async def run(self, call: Call) -> Outcome:
        """Returns the service's receipt; an amount is booked if the step's config says in which direction."""
        await self._answer(call, call.attempt)
        receipt = f"{call.step.step_id}/{call.flow.business_key}"
        amount = call.step.config.get("books", 0) * call.inputs.get("amount", 0)
        return Done(outputs={"receipt": receipt, **call.inputs}, amount=amount)


class Event(Component):
    """Waits for an event from outside, with or without a deadline."""

    async def run(self, call: Call) -> Outcome:
        """Returns what to wait for: the config's `event` under the flow's business key."""
        wait = WaitForEvent(correlation_key=f"{call.step.config['event']}/{call.flow.business_key}")
        seconds = call.inputs.get("deadline_seconds")
        if seconds is None:
            return wait
        name = {"timer": "timer_after", "expiry": "expires_after"}[call.step.config["deadline"]]
        return WaitForEvent(correlation_key=wait.correlation_key, **{name: timedelta(seconds=seconds)})

    async def on_delivery(self, call: Call, delivery: Delivery) -> Outcome:
        """Completes the step with the event's payload, or with `arrived` false when the wait expired."""
        await self._answer(call, delivery.attempts)
        return Done(outputs={**(delivery.payload or {}), "arrived": not delivery.timed_out})

    async def on_timer(self, call: Call, timer: Timer) -> Outcome:
        """Completes the step: the deadline has passed."""
        await self._answer(call, timer.attempts)
        return Done(outputs={"arrived": False})


class Reminder(Component):
    """Waits for a while, then sends a reminder."""

    async def run(self, call: Call) -> Outcome:
        """Returns how long to wait."""
        return WaitForTimer(after=timedelta(seconds=call.inputs["seconds"]))

    async def on_timer(self, call: Call, timer: Timer) -> Outcome:
        """Sends the reminder."""
        await self._answer(call, timer.attempts)
        return Done(outputs={"reminded": True})


class Children(Component):
    """Starts child flows, and collects their results one by one in its component state."""

    async def run(self, call: Call) -> Outcome:
        """Returns the children to start."""
        return StartChildren(flow_id=call.step.config["flow_id"], trigger_data=call.inputs["children"])

    async def on_delivery(self, call: Call, delivery: Delivery) -> Outcome:
        """Takes in one child's result; completes the step with the last."""
        await self._answer(call, delivery.attempts)
        answers = {**call.state.get("answers", {}), delivery.payload["business_key"]: delivery.payload["result"]}
        if len(answers) < len(call.inputs["children"]):
            return KeepWaiting(state={"answers": answers})
        return Done(outputs={"answers": answers})


class Majority(Component):
    """Decides by the majority of all who were asked; who did not answer did not approve."""

    async def run(self, call: Call) -> Outcome:
        """Returns the decision."""
        await self._answer(call, call.attempt)
        approvals = sum(bool(answer.get("approved")) for answer in call.inputs["answers"].values())
        return Done(outputs={"approved": 2 * approvals > len(call.inputs["answers"]), "approvals": approvals})


class Chunk(Service):
    """Loads one chunk of a file."""

    async def run(self, call: Call) -> Outcome:
        """Returns how many rows it loaded; books them."""
        await super().run(call)
        return Done(outputs={"rows": call.inputs["rows"]}, amount=call.inputs["rows"])


class Verify(Component):
    """Checks that all rows of a file were loaded."""

    async def run(self, call: Call) -> Outcome:
        """Returns the sum of all chunks."""
        await self._answer(call, call.attempt)
        loaded: list[Any] = [call.flow.step_output(step_id, "rows", 0) for step_id in call.step.run_after]
        if sum(loaded) != call.inputs["rows"]:
            raise PermanentFailure(f"{sum(loaded)} rows of {call.inputs['rows']}")
        return Done(outputs={"rows": sum(loaded)})


def standard_components(
    latency: timedelta, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> dict[str, Component]:
    """Returns the components of the demo's definitions by component type.

    Args:
        latency: How long an answer from outside takes, unless the scenario says otherwise.
        pause: Waits for that many seconds; tests pass one that does not.
    """
    kinds: dict[str, type[Component]] = {
        "children": Children,
        "chunk": Chunk,
        "event": Event,
        "majority": Majority,
        "service": Service,
        "timer": Reminder,
        "verify": Verify,
    }
    # A chunk is local work, much faster than an answer from outside.
    return {name: kind(latency / 10 if kind is Chunk else latency, pause) for name, kind in kinds.items()}
