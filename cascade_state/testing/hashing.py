"""Hashes of directories: the name of a template database is the hash of what builds it.

The hash covers relative paths and contents in one canonical, length-prefixed stream, so that no two trees run
together, and nothing else: neither times nor owners nor where the directory lies.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["DirectoryHash", "hash_directory", "hash_file", "hash_texts", "migration_hash"]

# What tools leave beside sources; a change of these is no change.
CACHES: Final = (
    "__pycache__",
    "*.pyc",
    ".git",
    ".hypothesis",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".DS_Store",
    "*~",
    "*.swp",
)
_SHORT = 12
_CHUNK = 1024 * 1024
# Changes when the stream's layout does, so that old names cannot meet new contents.
_FORMAT = "cascade_state directory hash 1"


class DirectoryHash(str):
    """A SHA-256 in 64 hex digits."""

    __slots__ = ()

    @property
    def short(self) -> str:
        """The first 12 digits, enough for a name."""
        return self[:_SHORT]


def hash_directory(
    path: str | Path,
    *,
    include: Sequence[str] = ("**",),
    exclude: Sequence[str] = (),
    salt: Iterable[str] = (),
) -> DirectoryHash:
    """Returns the hash of all files below the directory; an empty directory has one, too.

    A symlink counts as its target's text and is not followed. Empty directories and special files do not
    count.

    Args:
        path: A directory.
        include: Globs of files that count. A glob without a slash is compared with each part of the relative
            path, one with a slash with the whole; `*` stays within a part, `**` does not.
        exclude: Globs of files and directories that do not count, besides the caches of usual tools.
        salt: Text that counts as well, in this order.

    Raises:
        FileNotFoundError: There is no such path.
        NotADirectoryError: It is not a directory.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"no such directory: {root}")
    if not root.is_dir():
        raise NotADirectoryError(f"not a directory: {root}")
    stream = _Stream(_FORMAT, *_texts("salt", salt))
    included = [_pattern(glob) for glob in include]
    excluded = [_pattern(glob) for glob in (*CACHES, *exclude)]
    for relative in sorted(_files(root, "", excluded), key=os.fsencode):
        if any(_matches(pattern, relative) for pattern in included):
            stream.add_file(relative, root / relative)
    return stream.digest()


def migration_hash(
    config_or_ini_path: Config | str | Path,
    *,
    server_version: int | str | None = None,
    extensions: Iterable[str] = (),
    salt: Iterable[str] = (),
) -> DirectoryHash:
    """Returns the hash of an Alembic environment: `env.py`, what lies beside it, and every version location.

    `script.py.mako` does not count: it makes new revisions and changes none.

    Args:
        config_or_ini_path: An `alembic.config.Config`, or the path of an `alembic.ini`.
        server_version: PostgreSQL's major version, where databases of several share one place.
        extensions: Names in any order.
        salt: Further text, in this order.

    Raises:
        FileNotFoundError: There is no such ini file or version location.
    """
    script_directory, locations = _environment(config_or_ini_path)
    stream = _Stream(
        _FORMAT,
        *_texts("server version", () if server_version is None else (str(server_version),)),
        *_texts("extensions", sorted(extensions)),
        *_texts("salt", salt),
        hash_directory(script_directory, exclude=("script.py.mako",)),
    )
    for location in locations:
        if not location.resolve().is_relative_to(script_directory.resolve()):
            stream.add_text(hash_directory(location))
    return stream.digest()


def hash_file(path: str | Path) -> DirectoryHash:
    """Returns the hash of one file's contents; a symlink is followed."""
    stream = _Stream(_FORMAT)
    stream.add_file("", Path(path).resolve())
    return stream.digest()


def hash_texts(*texts: str) -> DirectoryHash:
    """Returns the hash of texts in this order."""
    return _Stream(_FORMAT, *_texts("texts", texts)).digest()


class _Stream:
    """The bytes that are hashed; each part is preceded by its kind and length."""

    def __init__(self, *texts: str) -> None:
        self._hash = hashlib.sha256()
        for text in texts:
            self.add_text(text)

    def add_text(self, text: str) -> None:
        self._add(b"T", os.fsencode(text))

    def add_file(self, relative: str, path: Path) -> None:
        self._add(b"P", os.fsencode(relative))
        if path.is_symlink():
            self._add(b"L", os.fsencode(os.readlink(path)))
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._hash.update(b"F%d:" % size)
            seen = 0
            while chunk := file.read(_CHUNK):
                self._hash.update(chunk)
                seen += len(chunk)
        if seen != size:
            raise OSError(f"{path} changed while it was being hashed")

    def digest(self) -> DirectoryHash:
        return DirectoryHash(self._hash.hexdigest())

    def _add(self, kind: bytes, content: bytes) -> None:
        self._hash.update(b"%s%d:" % (kind, len(content)))
        self._hash.update(content)


def _texts(label: str, texts: Iterable[str]) -> tuple[str, ...]:
    if isinstance(texts, str):  # one text would pass for its letters
        raise TypeError(f"{label} must be several texts, not one")
    found = tuple(texts)
    return (label, str(len(found)), *found)


def _files(directory: Path, prefix: str, excluded: Sequence[re.Pattern[str]]) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            relative = f"{prefix}{entry.name}"
            if any(_matches(pattern, relative) for pattern in excluded):
                continue
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                yield from _files(Path(entry.path), f"{relative}/", excluded)
            elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                yield relative


def _pattern(glob: str) -> re.Pattern[str]:
    """Returns the glob as an expression for a whole relative path; without a slash any part of it will do."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    body = "".join(
        pieces.get(token) or (token if re.fullmatch(r"\[[^]]+\]", token) else re.escape(token))
        for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^]]+\]|.", glob.strip("/"), flags=re.DOTALL)
    ).replace("[!", "[^")
    whole = body if "/" in glob.strip("/") else f"(?:.*/)?{body}(?:/.*)?"
    return re.compile(whole, flags=re.DOTALL)


def _matches(pattern: re.Pattern[str], relative: str) -> bool:
    return pattern.fullmatch(relative) is not None


def _environment(config_or_ini_path: Any) -> tuple[Path, list[Path]]:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = config_or_ini_path
    if isinstance(config, (str, Path)):
        if not Path(config).is_file():
            raise FileNotFoundError(f"no such file: {config}")
        config = Config(str(config))
    path = list(sys.path)
    try:
        script = ScriptDirectory.from_config(config)
    finally:
        sys.path[:] = path  # the configuration's prepend_sys_path is for running, not for looking
    locations = [Path(location) for location in script._version_locations]
    return Path(script.dir), locations
