"""Coverage that takes no module away from another thread.

When `sys.path` has changed, coverage looks the measured packages up again, in whichever thread runs a new file next.
Then it removes from `sys.modules` what was not there before, also what another thread is importing at that moment,
whose import ends in a `KeyError`. Migrations change `sys.path`, and run in a thread of their own.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["look_packages_up_once"]


def look_packages_up_once() -> None:
    """Lets coverage, where it runs, look its packages up at its start only: `sys.path` does not move them."""
    if "coverage" not in sys.modules:
        return
    from coverage.inorout import InOrOut

    look_up = InOrOut.set_matchers_depending_on_syspath

    def look_up_once(self: Any) -> None:
        if not hasattr(self, "source_in_third_match"):
            look_up(self)

    InOrOut.set_matchers_depending_on_syspath = look_up_once  # type: ignore[method-assign]
