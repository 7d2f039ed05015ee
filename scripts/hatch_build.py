"""Wheel build hook: carries the migrations inside the package. Imported by hatchling only.

In a checkout `migrations/` and `alembic.ini` lie beside the package, in a wheel inside it, and
`script_location = %(here)s/migrations` holds in both. An editable install gets neither: it sees the checkout,
and a copy in site-packages would grow stale unseen.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CarryMigrations(BuildHookInterface[Any]):
    """Adds the migration environment to a standard wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Map both into the package; a missing one fails the build."""
        if version != "standard":
            return
        root = Path(self.root)
        for name in ("alembic.ini", "migrations"):
            build_data["force_include"][str(root / name)] = f"cascade_state/{name}"
