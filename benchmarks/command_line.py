"""The command line that the smaller benchmarks share: how thorough, and where the figures go."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Document", "options", "say", "show"]

Document: TypeAlias = dict[str, Any]


def options(module: str, description: str | None, *, quick: str) -> argparse.ArgumentParser:
    """Returns a parser of `--quick`, which means what `quick` says, `--json` and `--output`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the figures into this file, as JSON")
    return parser


def show(document: Document, arguments: argparse.Namespace, as_markdown: Callable[[Document], str]) -> int:
    """Prints the figures as asked for, and keeps them; returns the exit status."""
    text = json.dumps(document, indent=1)
    if arguments.output is not None:
        arguments.output.write_text(f"{text}\n")
    print(text if arguments.json else as_markdown(document))
    return 0


def say(text: str) -> None:
    """Shows how far it is."""
    print(text, file=sys.stderr, flush=True)
