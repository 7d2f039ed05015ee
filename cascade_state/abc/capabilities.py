"""What a back end can do beyond the contract, declared rather than guessed."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Capabilities"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a back end declares of itself; tests that need more than it declares skip, and say so."""

    durable: bool  # what was committed outlives the process
    cross_process: bool  # several processes can open one store
    caller_sql: bool  # `uow.connection`, `uow.session()` and `store.enlist()` work
    notify: bool  # committed work sends hints to other processes
