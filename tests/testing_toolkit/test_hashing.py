"""Hashes of directories and of Alembic environments."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.config import Config
from hypothesis import given
from hypothesis import strategies as st

from cascade_state.testing import DirectoryHash, hash_directory, migration_hash


def write(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write(tmp_path / "tree", a_dot_sql="one", sub__b_dot_sql="two")


def test_it_is_a_text_of_64_hex_digits_with_a_short_form(tree: Path) -> None:
    found = hash_directory(tree)
    assert isinstance(found, DirectoryHash)
    assert len(found) == 64
    assert set(found) <= set("0123456789abcdef")
    assert found.short == found[:12]


def test_it_does_not_depend_on_place_time_or_order_of_creation(tree: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "elsewhere" / "x", sub__b_dot_sql="two", a_dot_sql="one")
    os.utime(other / "a.sql", (0, 0))
    assert hash_directory(other) == hash_directory(str(tree))


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "a.sql").write_text("One"),
        lambda tree: (tree / "c.sql").write_text(""),
        lambda tree: (tree / "a.sql").unlink(),
        lambda tree: (tree / "a.sql").rename(tree / "z.sql"),
        lambda tree: (tree / "sub" / "b.sql").write_text("2"),
        lambda tree: shutil.move(tree / "sub" / "b.sql", tree / "b.sql"),
        lambda tree: (tree / "link").symlink_to("a.sql"),
    ],
)
def test_every_change_of_a_file_changes_it(tree: Path, change: Callable[[Path], object]) -> None:  # TPL-16
    before = hash_directory(tree)
    change(tree)
    assert hash_directory(tree) != before


@pytest.mark.parametrize("name", ["__pycache__/a.cpython-311.pyc", "sub/__pycache__/x", ".git/HEAD", "a.sql~"])
def test_what_tools_leave_behind_does_not_count(tree: Path, name: str) -> None:
    before = hash_directory(tree)
    (tree / name).parent.mkdir(exist_ok=True)
    (tree / name).write_text("x")
    assert hash_directory(tree) == before


def test_path_and_content_do_not_run_together(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    write(first, ab="c")
    write(second, a="bc")
    assert hash_directory(first) != hash_directory(second)


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.text("xy1:", max_size=3)), min_size=2, max_size=4))
def test_different_trees_have_different_hashes(
    tmp_path_factory: pytest.TempPathFactory, trees: list[dict[str, str]]
) -> None:
    root = tmp_path_factory.mktemp("trees")
    hashes: dict[str, dict[str, str]] = {}
    for number, files in enumerate(trees):
        (root / str(number)).mkdir()
        found = hash_directory(write(root / str(number), **files))
        assert hashes.setdefault(found, files) == files


def test_an_empty_directory_has_a_hash(tmp_path: Path) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    assert len(hash_directory(tmp_path / "empty")) == 64


def test_a_missing_path_and_a_file_are_refused(tree: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hash_directory(tree / "missing")
    with pytest.raises(NotADirectoryError):
        hash_directory(tree / "a.sql")


def test_a_symlink_is_its_targets_text_and_is_not_followed(tree: Path, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside", x="1")
    (tree / "link").symlink_to(outside)
    (tree / "broken").symlink_to("nowhere")
    (tree / "cycle").symlink_to(".")
    before = hash_directory(tree)
    (outside / "x").write_text("2")
    assert hash_directory(tree) == before
    (tree / "broken").unlink()
    (tree / "broken").symlink_to("elsewhere")
    assert hash_directory(tree) != before


def test_salt_counts_and_is_not_one_text(tree: Path) -> None:
    hashes = {hash_directory(tree, salt=salt) for salt in ((), ("a",), ("a", "b"), ("b", "a"), ("ab",), ("",))}
    assert len(hashes) == 6
    with pytest.raises(TypeError):
        hash_directory(tree, salt="ab")


@pytest.mark.parametrize(
    ("options", "counted"),
    [
        ({"include": ("*.sql",)}, {"a.sql", "sub/b.sql", "sub/deep/d.sql"}),
        ({"include": ("deep",)}, {"sub/deep/d.sql"}),
        ({"include": ("sub/*",)}, {"sub/b.sql", "sub/c.txt"}),
        ({"include": ("sub/**",)}, {"sub/b.sql", "sub/c.txt", "sub/deep/d.sql"}),
        ({"include": ("**/*.sql",)}, {"a.sql", "sub/b.sql", "sub/deep/d.sql"}),
        ({"exclude": ("sub",)}, {"a.sql"}),
        ({"exclude": ("deep", "*.txt")}, {"a.sql", "sub/b.sql"}),
        ({"exclude": ("sub/?.[!t]*",)}, {"a.sql", "sub/c.txt", "sub/deep/d.sql"}),
    ],
)
def test_include_and_exclude_choose_files(tree: Path, options: dict[str, tuple[str, ...]], counted: set[str]) -> None:
    write(tree, sub__c_dot_txt="three", sub__deep__d_dot_sql="four")
    before = hash_directory(tree, **options)
    for path in ("a.sql", "sub/b.sql", "sub/c.txt", "sub/deep/d.sql"):
        content = (tree / path).read_bytes()
        (tree / path).write_bytes(content + b"!")
        assert (hash_directory(tree, **options) != before) == (path in counted), path
        (tree / path).write_bytes(content)


def test_names_that_are_not_utf8_count(tmp_path: Path) -> None:
    before = hash_directory(tmp_path)
    (tmp_path / os.fsdecode(b"\xff.sql")).write_text("x")
    assert hash_directory(tmp_path) != before


def test_the_stream_is_the_documented_one(tmp_path: Path) -> None:
    """The format is a promise: another version of the library finds the same template."""
    write(tmp_path / "tree", a="xyz")
    expected = hashlib.sha256()
    for part in ("cascade_state directory hash 1", "salt", "0"):
        expected.update(f"T{len(part)}:{part}".encode())
    expected.update(b"P1:aF3:xyz")
    assert hash_directory(tmp_path / "tree") == expected.hexdigest()


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    write(
        root,
        migrations__env_dot_py="pass",
        migrations__script_dot_py_dot_mako="template",
        migrations__versions__1_dot_py="revision = '1'",
        more__2_dot_py="revision = '2'",
    )
    (root / "alembic.ini").write_text(
        "[alembic]\nscript_location = %(here)s/migrations\nprepend_sys_path = .\npath_separator = newline\n"
        "version_locations =\n    %(here)s/migrations/versions\n    %(here)s/more\n"
    )
    return root


@pytest.mark.parametrize("file", ["migrations/env.py", "migrations/versions/1.py", "more/2.py"])
def test_a_migration_hash_covers_env_py_and_every_version_location(environment: Path, file: str) -> None:
    before = migration_hash(environment / "alembic.ini")
    (environment / file).write_text("# changed")
    assert migration_hash(environment / "alembic.ini") != before


def test_a_migration_hash_leaves_the_template_of_scripts_out(environment: Path) -> None:
    before = migration_hash(environment / "alembic.ini")
    (environment / "migrations" / "script.py.mako").write_text("changed")
    assert migration_hash(environment / "alembic.ini") == before


def test_a_migration_hash_takes_a_config_and_does_not_depend_on_the_place(environment: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(environment, tmp_path / "copy")
    found = migration_hash(str(environment / "alembic.ini"))
    assert found == migration_hash(Config(str(environment / "alembic.ini")))
    assert found == migration_hash(copy / "alembic.ini")


def test_a_migration_hash_adds_server_extensions_and_salt(environment: Path) -> None:
    ini = environment / "alembic.ini"
    hashes = [
        migration_hash(ini),
        migration_hash(ini, server_version=16),
        migration_hash(ini, server_version=18),
        migration_hash(ini, extensions=("citus",)),
        migration_hash(ini, salt=("citus",)),
    ]
    assert len(set(hashes)) == len(hashes)
    assert migration_hash(ini, extensions=("b", "a")) == migration_hash(ini, extensions=("a", "b"))
    assert migration_hash(ini, server_version="18") == migration_hash(ini, server_version=18)


def test_a_missing_ini_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        migration_hash(tmp_path / "alembic.ini")
