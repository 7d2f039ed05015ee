"""The page of the pytest plugin, from what it registers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from _pytest.config.argparsing import Parser
from _pytest.fixtures import FixtureFunctionDefinition

from cascade_state.testing import pytest_plugin
from cascade_state.testing.pytest_plugin import async_fixtures, fixtures

HEAD = """\
# pytest plugin

Installed with the package; pytest loads it by itself, and `-p no:cascade_state` leaves it out. The recipes are in
[A database per test](../how-to/database-per-test.md).

"""
_RETURNS = {"Iterator", "AsyncIterator"}


def _fixtures(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if isinstance(value, FixtureFunctionDefinition) and not name.startswith("_"):
            yield name, value


def _type(function: Any) -> str:
    text = str(inspect.signature(function).return_annotation).strip("'")
    outer, bracket, inner = text.partition("[")
    return inner.removesuffix("]") if bracket and outer in _RETURNS else text


def _fixture(name: str, definition: Any) -> str:
    function = definition._get_wrapped_function()
    marker = definition._fixture_function_marker
    scope = "one for each test" if marker.scope == "function" else f"one for each {marker.scope}"
    runs = f", for each of {', '.join(f'`{each}`' for each in marker.params)}" if marker.params else ""
    return f"### {name}\n\n`{_type(function)}`, {scope}{runs}.\n\n{inspect.cleandoc(function.__doc__)}\n\n"


def _options(parser: Parser) -> Iterator[str]:
    yield "| option | |\n|---|---|\n"
    for group in parser._groups:
        for option in group.options:
            names = ", ".join(f"`{name}`" for name in option.names())
            facts = option.attrs()
            value = facts.get("metavar") or "|".join(facts.get("choices") or ())
            shown = names[:-1] + f"={value}`" if value else names
            yield f"| {shown.replace('|', chr(92) + '|')} | {facts['help']} |\n"


def _ini_keys(parser: Parser) -> Iterator[str]:
    yield "| key | kind | |\n|---|---|---|\n"
    for name, (text, kind, _) in parser._inidict.items():
        yield f"| `{name}` | {kind or 'string'} | {text} |\n"


def generate() -> dict[str, str]:
    """Return the page."""
    parser = Parser(_ispytest=True)
    pytest_plugin.pytest_addoption(parser)
    text = HEAD
    text += "## Fixtures\n\n" + "".join(_fixture(*each) for each in _fixtures(fixtures))
    text += "".join(_fixture(*each) for each in _fixtures(async_fixtures))
    text += "## Options\n\n" + "".join(_options(parser)) + "\n"
    text += "## Ini keys\n\n" + "".join(_ini_keys(parser)) + "\n"
    text += (
        "## Markers\n\n| marker | |\n|---|---|\n"
        "| `leaves_connections` | the test may leave connections open to its test database |\n"
    )
    return {"docs/reference/pytest-plugin.md": text}
