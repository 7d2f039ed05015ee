"""Binds every contract class to one back end, so that a new class cannot be forgotten."""

from __future__ import annotations

from cascade_state.testing.contracts import StoreContract, every_contract


def bound_to(back_end: type, module: str) -> dict[str, type[StoreContract]]:
    """Returns a test class for each contract class: `TransactionsContract` becomes `TestTransactions`."""
    bound = {}
    for contract in every_contract():
        name = f"Test{contract.__name__.removesuffix('Contract')}"
        assert name not in bound, f"two contract classes are called {contract.__name__}"
        bound[name] = type(name, (back_end, contract), {"__module__": module})
    return bound
