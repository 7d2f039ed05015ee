"""Which contract test proves which rule, from the marks on the tests."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from cascade_state.testing.contracts import every_contract, every_test, rules_of

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "docs" / "reference" / "rules.md"

HEAD = """\
# Which test proves which rule

Each [rule](rules.md) is shown by tests of the shipped contract suite, `cascade_state.testing.contracts`. They run on
PostgreSQL and on memory from the same classes. To test another back end, see [testing](../how-to/testing.md).

"""

CONTRACT_COLUMNS = """\
| rule | contract | proved by |
|---|---|---|
"""

BEYOND = """
## Beyond the contract

What takes several processes, a server that dies, a second database or a look into the server's catalogue is shown by
tests of this project; those of replica sets run on memory too, where that makes sense.

| rule | tests | proved by |
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


def proofs_beyond() -> dict[str, dict[str, list[str]]]:
    """Return the tests outside the contract that prove each rule, by their file; read, because importing runs code."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for number in _rules_of(node):
                    found[number][path.relative_to(ROOT).as_posix()].append(node.name)
    return found


def _rules_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the rules of the mark `@rule(…)` above a function."""
    return [
        ast.literal_eval(number)
        for mark in function.decorator_list
        if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "rule"
        for number in mark.args
    ]


def _sentence(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _rows(found: dict[str, dict[str, list[str]]]) -> str:
    rows = []
    for number in sorted(found):
        for place, names in sorted(found[number].items()):
            tests = "<br>".join(map(_sentence, sorted(names)))
            rows.append(f"| [{number}](rules.md#{number.lower()}) | `{place}` | {tests} |\n")
    return "".join(rows)


def generate() -> dict[str, str]:
    """Return the page."""
    page = HEAD + CONTRACT_COLUMNS + _rows(proofs()) + BEYOND + _rows(proofs_beyond())
    return {"docs/reference/proofs.md": page}
