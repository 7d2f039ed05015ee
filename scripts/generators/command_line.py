"""The page of the command `cascade-state`, from the command itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from cascade_state.cli.app import app

HEAD = """\
# Command line

The extra `cli` brings the command:

```console
$ pip install "cascade-state[cli]"
```

`DATABASE_URL` says which store it works on, or `--url`. With `--json` a subcommand prints JSON for programs. Exit code
0: done; 1: it failed, the reason is on the standard error; 2: it was called wrongly.

"""


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name}`"
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    variable = f" (or `{parameter.envvar}`)" if parameter.envvar else ""
    return names + variable


def _entry(path: str, command: Any) -> Iterator[str]:
    # Typer gives the type of its commands no public name.
    subcommands = getattr(command, "commands", None)
    if subcommands is not None:
        for name, subcommand in subcommands.items():
            yield from _entry(f"{path} {name}", subcommand)
        return
    yield f"## {path}\n\n{inspect.cleandoc(command.help or '')}\n\n"
    rows = [
        f"| {_name(parameter)} | {'yes' if parameter.required else ''} | {getattr(parameter, 'help', '') or ''} |\n"
        for parameter in command.params
        if parameter.name != "help"
    ]
    if rows:
        yield "| | required | |\n|---|---|---|\n" + "".join(rows) + "\n"


def generate() -> dict[str, str]:
    """Return the page."""
    text = HEAD + "".join(_entry("cascade-state", typer.main.get_command(app)))
    return {"docs/reference/command-line.md": text.rstrip("\n") + "\n"}
