from __future__ import annotations

import inspect
from collections import Counter

import pytest

from cascade_state.testing import contracts
from cascade_state.testing.contracts import capabilities_of, every_contract, every_test, rules_of

RULES = frozenset(
    [
        *(f"C-{number:02}" for number in range(1, 7)),
        *(f"C-{number}" for number in (10, 11, 12)),
        *(f"C-{number}" for number in range(20, 29)),
        *(f"C-{number}" for number in range(30, 36)),
        *(f"C-{number}" for number in range(40, 46)),
        *(f"C-{number}" for number in (50, 51)),
        *(f"LCK-{number:02}" for number in range(1, 18)),
        *(f"ORC-{number:02}" for number in range(1, 14)),
        "Errors",  # the rule that has no number
    ]
)

# Parts of the contract that have a name instead of a number.
UNNUMBERED = frozenset({"Errors", "Feed", "Hints", "Statistics", "Workers"})

# Every test that some back end may skip, and why. A test that is added here weakens what "passes the contract" means.
SKIPPED_WITHOUT = {
    "EnlistingContract.test_a_conflict_inside_a_savepoint_leaves_the_callers_transaction_usable": ("caller_sql",),
    "EnlistingContract.test_a_session_can_be_enlisted": ("caller_sql",),
    "EnlistingContract.test_an_enlisted_unit_of_work_ends_with_its_block": ("caller_sql",),
    "EnlistingContract.test_an_exception_that_leaves_the_block_is_the_callers_to_decide_upon": ("caller_sql",),
    "EnlistingContract.test_our_call_may_be_the_first_of_the_callers_transaction": ("caller_sql",),
    "EnlistingContract.test_our_rows_persist_with_the_callers_commit": ("caller_sql",),
    "EnlistingContract.test_our_rows_vanish_with_the_callers_rollback": ("caller_sql",),
    "EnlistingContract.test_the_callers_sql_commits_and_rolls_back_with_ours": ("caller_sql",),
    "EnlistingContract.test_what_is_enlisted_is_not_repeated": ("caller_sql",),
}

CONTRACTS = list(every_contract())
TESTS = [(contract, name, test) for contract in CONTRACTS for name, test in every_test(contract)]


def test_every_rule_is_cited_by_a_test() -> None:
    cited = Counter(number for _, _, test in TESTS for number in rules_of(test))
    assert RULES - set(cited) == set()
    assert set(cited) - RULES <= UNNUMBERED


def test_the_tests_that_a_back_end_may_skip_are_known() -> None:
    skipped = {f"{contract.__name__}.{name}": capabilities_of(test) for contract, name, test in TESTS}
    assert {name: needs for name, needs in skipped.items() if needs} == SKIPPED_WITHOUT


def test_every_contract_can_be_imported_from_the_suite() -> None:
    assert [getattr(contracts, contract.__name__) for contract in CONTRACTS] == CONTRACTS
    assert {contract.__name__ for contract in CONTRACTS} <= set(dir(contracts))
    for name in ("NoContract", "no_name"):
        with pytest.raises(AttributeError, match=name):
            getattr(contracts, name)


def test_no_contract_skips_by_itself() -> None:
    for module in {inspect.getmodule(contract) for contract in CONTRACTS}:
        assert module is not None
        assert "pytest.skip" not in inspect.getsource(module), module.__name__
