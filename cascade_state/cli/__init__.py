"""The `cascade-state` command: what an operator does with a store. Nothing imports this room.

It is the only room, with `testing`, that looks at environment variables.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command with the arguments of the process, and ends the process with its exit code."""
    try:
        from cascade_state.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("rich", "typer"):
            raise
        sys.exit(f"cascade-state needs {error.name}: install cascade-state[cli]")
    app()
