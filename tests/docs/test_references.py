"""The pages name nothing that does not exist, and leave nothing out that they promise to list."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cascade_state import errors
from cascade_state.model.flow_status import TRANSITIONS, FlowStatus
from cascade_state.postgres.tables import metadata
from scripts.generators.rules import proofs, proofs_beyond, stated_rules
from tests.docs.pages import DOCS, ROOT, blocks

_ROOT_PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]


@pytest.mark.parametrize("name", _ROOT_PAGES)
def test_links_of_pages_outside_the_site_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    for link in links:
        target = urlsplit(link)
        if not target.scheme:
            assert (ROOT / target.path).exists(), link


def test_every_rule_is_proved_and_every_proved_rule_is_stated() -> None:
    assert sorted(proofs()) == sorted(stated_rules())
    assert set(proofs_beyond()) <= set(stated_rules())


def test_the_rules_are_numbered_as_the_contract_numbers_them() -> None:
    assert len(stated_rules()) == len(set(stated_rules()))
    plain = [number for number in stated_rules() if number.startswith("C-")]
    assert (plain[0], plain[-1]) == ("C-01", "C-51")
    locks = [number for number in stated_rules() if number.startswith("LCK-")]
    assert locks == [f"LCK-{number:02}" for number in range(1, 18)]
    replica_sets = [number for number in stated_rules() if number.startswith("ORC-")]
    assert replica_sets == [f"ORC-{number:02}" for number in range(1, 14)]
    assert stated_rules()[-1] == "Errors"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_cites_only_rules_that_exist(page: Path) -> None:
    cited = set(re.findall(r"\b(?:C|LCK|ORC)-\d\d\b", page.read_text(encoding="utf-8")))
    assert cited <= set(stated_rules())


def test_the_picture_of_the_states_has_every_status_and_transition() -> None:
    picture = (DOCS / "assets/states.svg").read_text(encoding="utf-8")
    assert all(f">{status.value}<" in picture for status in FlowStatus)
    assert all(re.search(rf"[> ]{name}[<,]", picture) for name in TRANSITIONS)


def test_the_picture_of_the_schema_has_every_table_and_column() -> None:
    picture = (DOCS / "assets/schema.svg").read_text(encoding="utf-8")
    for table in metadata.tables.values():
        assert f">{table.name}<" in picture
        assert all(f">{column.name}<" in picture for column in table.columns)


def test_the_page_of_errors_has_every_error() -> None:
    page = (DOCS / "reference/errors.md").read_text(encoding="utf-8")
    assert all(f"\n## {name}\n" in page for name in errors.__all__)


def test_the_first_look_of_the_readme_is_short() -> None:
    (program,) = (block for block in blocks(ROOT / "README.md") if block.language == "python")
    assert sum(1 for line in program.text.splitlines() if line.strip()) <= 30
