"""Writes the generated files, or with `--check` says which are out of date.

Run by `make generate` and `make check`. Each module in `scripts/generators/` has a function `generate()` that
returns the text of each of its files by path from the root. Generators read the code, never what they wrote.
"""

import argparse
import difflib
import importlib
import pkgutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def generated_files() -> dict[str, str]:
    """Return what every generated file should contain, by path from the root."""
    files: dict[str, str] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent / "generators")]):
        generator = importlib.import_module(f"scripts.generators.{module.name}")
        files.update(generator.generate())
    return files


def difference(path: str, wanted: str) -> str:
    """Return a unified diff from the file to what it should contain; empty when they agree."""
    file = ROOT / path
    found = file.read_text(encoding="utf-8") if file.exists() else ""
    lines = difflib.unified_diff(
        found.splitlines(keepends=True), wanted.splitlines(keepends=True), path, f"{path} (generated)"
    )
    return "".join(lines)


def main() -> int:
    """Write or check; the exit code says whether a checked file was out of date."""
    parser = argparse.ArgumentParser(description="Write the generated files.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    check_only = parser.parse_args().check
    files = generated_files()
    stale = {path: diff for path, text in files.items() if (diff := difference(path, text))}
    if not check_only:
        for path in stale:
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_text(files[path], encoding="utf-8")
        print(f"{len(files)} generated files, {len(stale)} written.")
        return 0
    print("".join(stale.values()), end="")
    print(f"{len(files)} generated files, {len(stale)} out of date." + " Run `make generate`." * bool(stale))
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
