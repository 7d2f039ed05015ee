"""Which contract test proves which rule, from the marks on the tests."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from cascade_state.testing.contracts import every_contract, every_test, rules_of

RULES = Path(__file__).parent.parent.parent / "docs" / "reference" / "rules.md"

HEAD = """\
# Which test proves which rule

Each [rule](rules.md) is shown by tests of the shipped contract suite, `cascade_state.testing.contracts`. They run on
PostgreSQL and on memory from the same classes. To test another back end, see [testing](../how-to/testing.md).

| rule | contract | proved by |
|---|---|---|
"""


def stated_rules() -> list[str]:
    """Return the numbers of the rules that the page of rules states, in order."""
    return re.findall(r"^<a id=\"[a-z0-9-]+\"></a>\*\*(\S+)\*\*", RULES.read_text(encoding="utf-8"), re.MULTILINE)


def proofs() -> dict[str, dict[str, list[str]]]:
    """Return the tests that prove each rule, by contract class."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for contract in every_contract():
        for name, test in every_test(contract):
            for number in rules_of(test):
                found[number][contract.__name__].append(name)
    return found


def _sentence(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _rows() -> str:
    found = proofs()
    rows = []
    for number in sorted({*stated_rules(), *found}):
        for contract, names in sorted(found[number].items()):
            tests = "<br>".join(map(_sentence, sorted(names)))
            rows.append(f"| [{number}](rules.md#{number.lower()}) | `{contract}` | {tests} |\n")
    return "".join(rows)


def generate() -> dict[str, str]:
    """Return the page."""
    return {"docs/reference/proofs.md": HEAD + _rows()}
