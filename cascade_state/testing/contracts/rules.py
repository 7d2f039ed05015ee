"""How a contract test says which rule it proves, and what it needs of a back end.

Plain attributes of the test function rather than pytest markers, so that a project that subclasses the contract needs
no configuration for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

__all__ = ["capabilities_of", "every_test", "requires", "rule", "rules_of"]

Function = TypeVar("Function", bound=Callable[..., Any])


def rule(*numbers: str) -> Callable[[Function], Function]:
    """Marks a test as the proof of rules, `@rule("C-22")`."""

    def mark(function: Function) -> Function:
        function.__contract_rules__ = numbers  # type: ignore[attr-defined]
        return function

    return mark


def requires(*capabilities: str) -> Callable[[Function], Function]:
    """Marks a test as one that is skipped when the store's `capabilities` do not declare all of these."""

    def mark(function: Function) -> Function:
        function.__contract_capabilities__ = capabilities  # type: ignore[attr-defined]
        return function

    return mark


def rules_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the numbers of the rules that a test proves."""
    return getattr(function, "__contract_rules__", ())


def capabilities_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the capabilities that a test needs."""
    return getattr(function, "__contract_capabilities__", ())


def every_test(contract: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yields the tests of a contract class, inherited ones included, with their names."""
    for name in dir(contract):
        if name.startswith("test_"):
            yield name, getattr(contract, name)
