"""The contract suite: one class per area, one rule per test; subclass them with a `store` fixture to test a back end.

`StoreContract` (in `base`) says which fixtures a back end gives. `every_contract()` yields all classes, for those who
want none forgotten. Importing this package needs pytest, pytest-asyncio and Hypothesis, and imports no back end.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from inspect import isclass
from pkgutil import iter_modules
from typing import TYPE_CHECKING

import pytest

_MODULES = sorted(module.name for module in iter_modules(__path__))

# A failing assert in here shows its values, as it does in a test file.
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _MODULES))

from cascade_state.testing.contracts.base import LEASE, PATIENCE, OpenStore, StoreContract  # noqa: E402
from cascade_state.testing.contracts.observing import Observer  # noqa: E402
from cascade_state.testing.contracts.rule_machine import SideBySideMachine  # noqa: E402
from cascade_state.testing.contracts.rules import capabilities_of, every_test, requires, rule, rules_of  # noqa: E402

__all__ = [
    "LEASE",
    "PATIENCE",
    "Observer",
    "OpenStore",
    "SideBySideMachine",
    "StoreContract",
    "capabilities_of",
    "every_contract",
    "every_test",
    "requires",
    "rule",
    "rules_of",
]


def every_contract() -> Iterator[type[StoreContract]]:
    """Yields every contract class of this package, by module, then name."""
    for module in _MODULES:
        members = vars(import_module(f"{__name__}.{module}"))
        for name in sorted(members):
            member = members[name]
            if isclass(member) and issubclass(member, StoreContract) and member.__module__.endswith(f".{module}"):
                if member is not StoreContract:
                    yield member


if not TYPE_CHECKING:  # which would take each for a variable, and a variable is no base class; its module has the class

    def __getattr__(name: str) -> type[StoreContract]:
        """Returns the contract class of a name, so that none has to know the module of its area."""
        for contract in () if name.startswith("_") else every_contract():
            if contract.__name__ == name:
                return contract
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *(contract.__name__ for contract in every_contract())})
