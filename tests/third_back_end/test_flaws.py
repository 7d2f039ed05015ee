"""The contract suite finds mistakes: each flaw makes the tests of its rule fail, and by no means all of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.third_back_end.file_store import Flaw

_HERE = Path(__file__).parent

# A test that must notice, for each flaw.
_NOTICED_BY = {
    Flaw.KEEPS_WHAT_WAS_ROLLED_BACK: "test_leaving_by_an_exception_leaves_no_trace",
    Flaw.OVERWRITES_NEWER_STATES: "test_an_expected_version_guards_the_write",
    Flaw.CLAIMS_WITHOUT_A_LEASE: "test_two_claimers_never_hold_the_same_timer",
    Flaw.SEES_NO_LOCKS: "test_everybody_sees_whether_it_is_held",
}


def test_the_suite_finds_every_flaw() -> None:
    options = ("-q", "-rA", "--tb=no", "--timeout=20", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(_HERE / "flawed.py")],
        cwd=_HERE.parent.parent,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    outcomes = re.findall(r"^(PASSED|FAILED) \S+::Test(\w+)::(\w+)", done.stdout, re.MULTILINE)
    for flaw, test in _NOTICED_BY.items():
        failed = {name for outcome, owner, name in outcomes if (outcome, owner) == ("FAILED", flaw.name)}
        passed = {name for outcome, owner, name in outcomes if (outcome, owner) == ("PASSED", flaw.name)}
        assert test in failed, f"{flaw.name}: {sorted(failed)}\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
        assert passed, f"{flaw.name} makes everything fail: it shows nothing"
