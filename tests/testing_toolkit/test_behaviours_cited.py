"""Every behaviour that other toolkits of this kind have, and ours must have too, is shown by a test that names it."""

from __future__ import annotations

import re
from pathlib import Path


def test_all_behaviours_of_template_databases_are_shown() -> None:
    texts = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    shown = {int(number) for number in re.findall(r"# .*?TPL-(\d\d)\b", texts.replace(", TPL", "\n# TPL"))}
    assert shown == set(range(1, 21))
