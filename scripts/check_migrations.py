"""Checks that migrations import nothing of the application. Run by `make lint`.

A revision must do tomorrow what it did when it was written, and application code changes. So `migrations/`
may import Alembic, SQLAlchemy and the standard library only.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ALLOWED = {"alembic", "sqlalchemy", *sys.stdlib_module_names}


def imported_modules(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of each imported module; a relative import starts with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def violations(directory: Path) -> list[str]:
    """List the imports under *directory* that are not allowed, as `file:line: message`."""
    return [
        f"{path}:{line}: migrations must not import {module}"
        for path in sorted(directory.rglob("*.py"))
        for line, module in imported_modules(path.read_text(encoding="utf-8"))
        if module.partition(".")[0] not in ALLOWED
    ]


def main() -> int:
    """Print every violation; say whether there was one."""
    found = violations(Path(__file__).parent.parent / "migrations")
    print("\n".join(found) or "Migrations import Alembic, SQLAlchemy and the standard library only.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
