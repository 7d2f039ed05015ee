"""Runs the blocks of a page as a reader would.

- Python without a title runs in one name space a page, with `await` at the top level as in `python -m asyncio`, and
  finds an open store under the name `store`.
- Python with a title is the content of that file; a later block with the same title is appended to it.
- A console block holds commands after `$`, and what they print. Commands that start Python programs are executed, and
  their output is compared where the page shows it; of others it is checked that they exist.

The URL that the pages show stands for the back end that they are run on.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from typer.main import get_command

from cascade_state.cli.app import app
from cascade_state.testing.integresql.operations import OPERATIONS
from tests.docs.pages import ROOT, Block

URL_IN_PAGES = "postgresql://localhost/cascade"
# `javascript` is run by the test of the foreign clients, which has what it needs; nobody here can run `go`.
LANGUAGES = frozenset({"console", "go", "ini", "javascript", "python", "sql", "text", "toml"})

_SECONDS_A_COMMAND = 50


@dataclass
class Reader:
    """Somebody who follows pages: the directory with their files, the names they defined, the database they use."""

    directory: Path
    url: str
    names: dict[str, Any] = field(default_factory=dict)

    async def follow(self, block: Block) -> None:
        """Does what the block says.

        Raises:
            AssertionError: It does not do what the page shows.
        """
        assert block.language in LANGUAGES, f"{block.place}: the language {block.language!r} is not known here"
        if block.language == "python" and block.title:
            self._append(block.title, block.text)
            compile(block.source, block.place, "exec", dont_inherit=True)
        elif block.language == "python":
            await self._run_code(block)
        elif block.language == "console":
            for command, output in commands(block.text):
                self._run_command(command, output, block)
        elif block.title:
            self._append(block.title, block.text)

    def _append(self, name: str, text: str) -> None:
        file = self.directory / name
        file.parent.mkdir(exist_ok=True)
        with file.open("a", encoding="utf-8") as opened:
            opened.write(self._here(text))

    def _here(self, text: str) -> str:
        return text.replace(URL_IN_PAGES, self.url)

    async def _run_code(self, block: Block) -> None:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(self._here(block.source), block.place, "exec", flags, dont_inherit=True)
        result = eval(code, self.names)  # noqa: S307 - the project's own pages
        if inspect.isawaitable(result):
            await result

    def _run_command(self, command: str, output: str, block: Block) -> None:
        words = shlex.split(self._here(command), comments=True)
        variables = {}
        while "=" in words[0]:
            name, _, variables[name] = words.pop(0).partition("=")
        program, *arguments = words
        if program not in _EXECUTED:
            assert program in _CHECKED, f"{block.place}: nobody checks {program!r}"
            _CHECKED[program](arguments, block.place)
            return
        where = ROOT if program == "alembic" else self.directory
        done = subprocess.run(
            [*_EXECUTED[program], *arguments],
            cwd=where,
            env={**os.environ, **_QUIET, "PYTHONPATH": str(where), **variables},
            capture_output=True,
            text=True,
            timeout=_SECONDS_A_COMMAND,
            check=False,
        )
        assert done.returncode == 0, f"{block.place}: {command}\n{done.stdout}{done.stderr}"
        if output:
            assert done.stdout.strip() == self._here(output).strip(), f"{block.place}: {command} prints something else"


def commands(text: str) -> list[tuple[str, str]]:
    """Returns the commands of a console block, each with the output that is shown."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found:
            command, output = found[-1]
            found[-1] = (command, f"{output}{line}\n")
    return found


_EXECUTED = {
    "alembic": [sys.executable, "-m", "alembic"],
    "cp": ["cp"],
    "pytest": [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"],
    "python": [sys.executable, "-W", "error"],
}
# Programs of a page are not measured, and say nothing but what they print.
_QUIET = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": "", "PYTHONDONTWRITEBYTECODE": "1"}


def _check_make(arguments: list[str], place: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in (word for word in arguments if "=" not in word):
        assert f"\n{target}:" in makefile, f"{place}: there is no make {target}"


def _check_pip(arguments: list[str], place: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert arguments[0] == "install", place
    for requirement in arguments[1:]:
        name, _, extras = requirement.rstrip("]").partition("[")
        if name == project["name"]:
            known = project["optional-dependencies"]
            assert not extras or set(extras.split(",")) <= set(known), f"{place}: no such extra in {requirement}"


def _check_our_command(arguments: list[str], place: str) -> None:
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        assert arguments, f"{place}: cascade-state needs a subcommand there"
        assert arguments[0] in command.commands, f"{place}: there is no cascade-state {arguments[0]}"
        command = command.commands[arguments.pop(0)]
    known = {"--help"}.union(*(parameter.opts for parameter in command.params))
    for option in (word.partition("=")[0] for word in arguments if word.startswith("-")):
        assert option in known, f"{place}: cascade-state {command.name} has no {option}"


def _check_curl(arguments: list[str], place: str) -> None:
    method = arguments[arguments.index("-X") + 1] if "-X" in arguments else "GET"
    (url,) = (argument for argument in arguments if argument.startswith("http://127.0.0.1:5000/"))
    path = urlsplit(url).path
    known = [operation for operation in OPERATIONS if operation.method == method]
    assert any(re.fullmatch(re.sub(r"{\w+}", "[^/]+", operation.path), path) for operation in known), (
        f"{place}: there is no {method} {path}"
    )


_CHECKED = {"curl": _check_curl, "make": _check_make, "pip": _check_pip, "cascade-state": _check_our_command}
