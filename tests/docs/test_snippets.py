"""What the README and the pages show works as it stands there, on the back ends that they name."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from cascade_state import open_store
from tests.docs.pages import DOCS, ROOT, Block, blocks, run_on
from tests.docs.running import LANGUAGES, Reader, commands

_TUTORIAL = sorted((DOCS / "tutorial").glob("[0-9]*.md"))
_PAGES = [
    ROOT / "README.md",
    *sorted(page for page in DOCS.rglob("*.md") if page not in _TUTORIAL and "adr" not in page.parts),
]


def _runs() -> list[object]:
    """One run for each page and back end; the tutorial is one text."""
    texts = [(f"{page.relative_to(ROOT)}", [page], run_on(page)) for page in _PAGES]
    texts.append(("docs/tutorial", _TUTORIAL, ("memory", "postgresql")))
    return [
        pytest.param(pages, back_end, id=f"{name}-{back_end}")
        for name, pages, back_ends in texts
        for back_end in back_ends
        if any(block.language in ("python", "console") for page in pages for block in blocks(page))
    ]


@pytest.mark.timeout(180)  # the tutorial starts seven programs, one after the other
@pytest.mark.parametrize(("pages", "back_end"), _runs())
async def test_a_page_works_as_it_stands(
    pages: list[Path], back_end: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"memory://{secrets.token_hex(8)}" if back_end == "memory" else request.getfixturevalue("database_url")
    reader = Reader(tmp_path, url)
    async with open_store(url) as store:
        await store.migrate()
        for page in pages:
            reader.names = {"__name__": "page", "store": store, "url": url}
            for block in blocks(page):
                await reader.follow(block)


def test_every_block_has_a_language_that_the_tests_know() -> None:
    for page in (*_PAGES, *_TUTORIAL):
        for block in blocks(page):
            assert block.language in LANGUAGES, block.place


def test_every_example_of_the_readme_is_a_program() -> None:
    languages = [block.language for block in blocks(ROOT / "README.md")]
    assert "python" in languages
    assert "console" in languages


async def test_a_wrong_example_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '```python\nprice = 1 +\n```\n```python title="a.py"\nprint(1)\n```\n```console\n$ python a.py\n2\n```\n'
    )
    broken, program, command = (
        Block(block.language, block.title, block.text, ROOT / "README.md", block.line) for block in blocks(page)
    )
    reader = Reader(tmp_path, "memory://")
    with pytest.raises(SyntaxError):
        await reader.follow(broken)
    await reader.follow(program)
    with pytest.raises(AssertionError, match="prints something else"):
        await reader.follow(command)
    for nonsense, complaint in {
        "make nonsense": "there is no make nonsense",
        "pip install cascade-state[nonsense]": "no such extra",
        "cascade-state nonsense": "there is no cascade-state nonsense",
        "cascade-state migrate --nonsense": "has no --nonsense",
        "nonsense": "nobody checks",
    }.items():
        with pytest.raises(AssertionError, match=complaint):
            await reader.follow(Block("console", None, f"$ {nonsense}\n", ROOT / "README.md", 1))


def test_a_console_block_is_commands_with_their_output() -> None:
    assert commands("$ make demo\n$ python a.py\none\ntwo\n") == [("make demo", ""), ("python a.py", "one\ntwo\n")]
