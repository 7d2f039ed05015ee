"""The contract: what every back end offers and promises.

Each repository class has public methods, which check their arguments in one way for all back ends and say
what the caller may rely on, and protected methods (`_get`, `_put`, …), which a back end implements and which
receive checked arguments only. The rule numbers (C-…) refer to the rules in the reference;
`cascade_state.testing.contracts` shows each.
"""

from __future__ import annotations

from cascade_state.abc.capabilities import Capabilities
from cascade_state.abc.component_states import ComponentStates
from cascade_state.abc.correlations import Correlations
from cascade_state.abc.events import Events
from cascade_state.abc.feeds import Feeds
from cascade_state.abc.flow_definitions import FlowDefinitions
from cascade_state.abc.flow_instances import AddResult, FlowInstances
from cascade_state.abc.hints import HintListener
from cascade_state.abc.locks import HeldLock, Locks
from cascade_state.abc.options import StoreOptions
from cascade_state.abc.replica_sets import ReplicaSets
from cascade_state.abc.store import Store
from cascade_state.abc.timers import Timers
from cascade_state.abc.unit_of_work import UnitOfWork

__all__ = [
    "AddResult",
    "Capabilities",
    "ComponentStates",
    "Correlations",
    "Events",
    "Feeds",
    "FlowDefinitions",
    "FlowInstances",
    "HeldLock",
    "HintListener",
    "Locks",
    "ReplicaSets",
    "Store",
    "StoreOptions",
    "Timers",
    "UnitOfWork",
]
