"""What the demo starts, what happens to it from outside, and what must come of it.

A scenario is made from a seed. It is the independent ledger: it never looks into the store, so whatever the
store ends up with is compared with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from random import Random

from cascade_state import FlowStatus, JsonObject
from cascade_state.demo.definition_files import load_definitions

__all__ = ["Ending", "Moment", "PlannedEvent", "PlannedFlow", "Scenario"]

_LONG = 600.0  # seconds; a deadline that the event is always in time for
_SHORT = 1.0  # seconds; a deadline that passes while the demo runs
_CHUNK_ROWS = 50
_REVIEWERS = ("ada", "ben", "cleo")


class Moment(Enum):
    """When an event is published."""

    BEFORE = "before its flow exists"
    WAITING = "as soon as its step waits"
    DEADLINE = "at the very deadline of its step"
    REMINDED = "after the reminder was sent"
    ENDED = "after its flow has ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedEvent:
    """An event of the outside world. The same `event_id` may be planned several times: those are duplicates."""

    correlation_key: str
    event_id: str
    payload: JsonObject
    moment: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """One way in which a flow may end; `done` are the steps that did something, `amount` what they book together."""

    status: FlowStatus
    done: frozenset[str]
    amount: int = 0
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFlow:
    """A flow of the scenario: how it is started, what happens to it, and how it must end (in one of `endings`)."""

    flow_id: str
    story: str
    business_key: str
    trigger_data: JsonObject
    endings: tuple[Ending, ...]
    events: tuple[PlannedEvent, ...] = ()
    received: frozenset[str] = frozenset()  # ids of events that must be received
    children: tuple[PlannedFlow, ...] = ()

    def with_children(self) -> Iterator[PlannedFlow]:
        """Yields this flow and its children."""
        yield self
        yield from self.children


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All flows that are started from outside; `slow` are the steps that take longer than a lease."""

    flows: tuple[PlannedFlow, ...]
    slow: frozenset[tuple[str, str]] = field(default_factory=frozenset)

    @classmethod
    def make(cls, *, flow_count: int, seed: int, slow_seconds: float = 3.0) -> Scenario:
        """Returns the scenario of a seed: at least one flow of each definition, orders for the most part.

        Args:
            slow_seconds: How long the slow steps take; should be well above the lease.
        """
        random = Random(seed)
        imports = max(1, flow_count // 80)
        approvals = max(len(_APPROVALS), flow_count // 6)
        orders = max(len(_ORDERS), flow_count - imports - approvals)
        flows = [_order(number, random, slow_seconds) for number in range(orders)]
        flows += [_approval(number, random) for number in range(approvals)]
        random.shuffle(flows)
        # The long ones first, so that they are in the middle of it when the worker is killed.
        flows[:0] = [_import(number) for number in range(imports)]
        slow = frozenset((flow.business_key, _SLOW_STEP) for flow in flows if flow.story == _SLOW)
        return cls(flows=tuple(flows), slow=slow)

    def all_flows(self) -> Iterator[PlannedFlow]:
        """Yields the flows and their children."""
        for flow in self.flows:
            yield from flow.with_children()

    @property
    def step_count(self) -> int:
        """How many steps will do something (in the first ending of each flow)."""
        return sum(len(flow.endings[0].done) for flow in self.all_flows())


# Orders

_SLOW_STEP = "hand-to-carrier"
_PICKED_UP = "picked up in time"
_RETRIED = "payment fails twice, then works"
_REFUSED = "card refused for good"
_DOWN = "payment stays down, given up"
_RETURNED = "never picked up: refunded"
_SLOW = "a call that outlasts its lease"
_RACE = "pick-up at the very deadline"
_UNREADY = "pick-up cannot be taken in at first"

# Weights of the stories of twenty-one orders.
_ORDERS = {_PICKED_UP: 6, _RETRIED: 3, _REFUSED: 2, _DOWN: 1, _RETURNED: 4, _SLOW: 2, _RACE: 2, _UNREADY: 1}
_ORDER_STORIES = tuple(story for story, weight in _ORDERS.items() for _ in range(weight))

_SHIPPED = ("reserve-stock", "charge-payment", "hand-to-carrier", "parcel-delivered", "pick-up")


def _order(number: int, random: Random, slow_seconds: float) -> PlannedFlow:
    stories = tuple(_ORDERS)  # each once, then by weight
    story = stories[number] if number < len(stories) else random.choice(_ORDER_STORIES)
    key = f"order-{number + 1:04}"
    amount = random.randrange(500, 20_000)
    closed = Ending(status=FlowStatus.COMPLETED, done=frozenset((*_SHIPPED, "close-order")), amount=amount)
    refunded = Ending(status=FlowStatus.COMPLETED, done=frozenset((*_SHIPPED, "return-to-sender", "refund")))
    refused = Ending(
        status=FlowStatus.FAILED, done=frozenset(("reserve-stock",)), failed=frozenset(("charge-payment",))
    )
    endings = {_REFUSED: (refused,), _DOWN: (refused,), _RETURNED: (refunded,), _RACE: (closed, refunded)}
    pretend = {
        _RETRIED: {"charge-payment": {"down_for_attempts": 2}},
        _REFUSED: {"charge-payment": {"refuses": "the card is blocked"}},
        _DOWN: {"charge-payment": {"down_for_attempts": 99}},
        _SLOW: {_SLOW_STEP: {"takes_seconds": slow_seconds}},
        _UNREADY: {"pick-up": {"down_for_attempts": 1}},
    }
    carrier = _events(f"carrier/{key}", {"depot": random.choice(("north", "south"))}, random)
    pick_up = _pick_up(story, f"pick-up/{key}", random)
    must_come = {_REFUSED: (), _DOWN: (), _RETURNED: carrier, _RACE: carrier}.get(story, carrier + pick_up)
    return PlannedFlow(
        flow_id="order",
        story=story,
        business_key=key,
        trigger_data={
            "amount": amount,
            "pick_up_seconds": _SHORT if story in (_RETURNED, _RACE) else _LONG,
            "pretend": pretend.get(story, {}),
        },
        endings=endings.get(story, (closed,)),
        events=() if story in (_REFUSED, _DOWN) else carrier + pick_up,
        received=frozenset(event.event_id for event in must_come),
    )


def _pick_up(story: str, key: str, random: Random) -> tuple[PlannedEvent, ...]:
    payload: JsonObject = {"signed_by": random.choice(("M. Curie", "Ł. Nowak", "李雷"))}
    if story == _RACE:
        return (PlannedEvent(correlation_key=key, event_id=f"{key}#1", payload=payload, moment=Moment.DEADLINE),)
    if story == _RETURNED:  # for every second one the customer comes too late
        late = PlannedEvent(correlation_key=key, event_id=f"{key}#1", payload=payload, moment=Moment.ENDED)
        return (late,) if random.random() < 0.5 else ()
    return _events(key, payload, random)


# Approvals

_APPROVED = "approved by the majority"
_REJECTED = "rejected by the majority"
_REMINDED = "answered only after the reminder"
_SILENT = "a reviewer never answers"
_APPROVALS = (_APPROVED, _REJECTED, _REMINDED, _SILENT)


def _approval(number: int, random: Random) -> PlannedFlow:
    story = _APPROVALS[number % len(_APPROVALS)]
    key = f"document-{number + 1:03}"
    reviewers = random.sample(_REVIEWERS, len(_REVIEWERS))
    verdicts: dict[str, bool | None] = dict.fromkeys(reviewers, story != _REJECTED)
    verdicts[reviewers[0]] = None if story == _SILENT else random.random() < 0.5
    children = tuple(_review(f"{key}/{name}", verdict, story, random) for name, verdict in verdicts.items())
    decided = "return-to-author" if story == _REJECTED else "publish-document"
    done = ["submit", "reviews", "decide", decided, *(("remind",) if story == _REMINDED else ())]
    return PlannedFlow(
        flow_id="approval",
        story=story,
        business_key=key,
        trigger_data={
            "remind_seconds": _SHORT / 2 if story == _REMINDED else _LONG,
            "pretend": {"remind": {"down_for_attempts": 1}},  # the first attempt to send it fails
            "reviewers": {child.business_key.rpartition("/")[2]: child.trigger_data for child in children},
        },
        endings=(Ending(status=FlowStatus.COMPLETED, done=frozenset(done)),),
        children=children,
    )


def _review(key: str, verdict: bool | None, story: str, random: Random) -> PlannedFlow:
    events: tuple[PlannedEvent, ...] = ()
    if verdict is not None:
        events = _events(f"verdict/{key}", {"approved": verdict}, random)
    if story == _REMINDED:
        events = tuple(replace(event, moment=Moment.REMINDED) for event in events)
    return PlannedFlow(
        flow_id="review",
        story="no answer in time" if verdict is None else "answered",
        business_key=key,
        trigger_data={"deadline_seconds": _SHORT if verdict is None else _LONG},
        endings=(Ending(status=FlowStatus.COMPLETED, done=frozenset(("invite", "verdict", "record"))),),
        events=events,
        received=frozenset(event.event_id for event in events),
    )


# Imports


def _import(number: int) -> PlannedFlow:
    steps = [step.step_id for step in load_definitions()["import"].steps]
    chunks = [step_id for step_id in steps if step_id.startswith("chunk-")]
    rows = _CHUNK_ROWS * len(chunks)
    down = {chunks[len(chunks) // 3]: {"down_for_attempts": 2}} if number % 2 == 0 else {}
    return PlannedFlow(
        flow_id="import",
        story="a chunk fails twice, then works" if down else "all chunks at once",
        business_key=f"file-{number + 1:02}.csv",
        trigger_data={"rows": rows, "rows_per_chunk": _CHUNK_ROWS, "pretend": down},
        endings=(Ending(status=FlowStatus.COMPLETED, done=frozenset(steps), amount=rows),),
    )


def _events(key: str, payload: JsonObject, random: Random) -> tuple[PlannedEvent, ...]:
    """Returns an event that comes before its step waits, or after; and now and then once more."""
    first = PlannedEvent(
        correlation_key=key,
        event_id=f"{key}#1",
        payload=payload,
        moment=random.choice((Moment.BEFORE, Moment.WAITING, Moment.WAITING)),
    )
    again = (replace(first, moment=moment) for moment in (first.moment, Moment.ENDED))
    chance = random.random()
    if chance < 0.15:
        return first, *again
    return (first, next(again)) if chance < 0.30 else (first,)
