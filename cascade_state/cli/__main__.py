"""`python -m cascade_state.cli`, the same as `cascade-state`."""

from __future__ import annotations

from cascade_state.cli import main

main()
