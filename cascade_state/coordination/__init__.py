"""Many workers, no mistakes: who works on what, on any back end.

Everything here works through `cascade_state.abc` and `cascade_state.model`, and knows no back end.
"""

from __future__ import annotations

from cascade_state.coordination.backoff import Backoff
from cascade_state.coordination.feed_consumer import FeedConsumer
from cascade_state.coordination.feed_handling import FeedHandler
from cascade_state.coordination.member import Member
from cascade_state.coordination.outcomes import GiveUp, Retry
from cascade_state.coordination.replica_set import ReplicaSet
from cascade_state.coordination.worker import DeliveryHandler, OrphanHandler, TimerHandler, Worker

__all__ = [
    "Backoff",
    "DeliveryHandler",
    "FeedConsumer",
    "FeedHandler",
    "GiveUp",
    "Member",
    "OrphanHandler",
    "ReplicaSet",
    "Retry",
    "TimerHandler",
    "Worker",
]
