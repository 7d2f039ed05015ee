"""What a pool hands out, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from cascade_state.testing.connections import driver_url
from cascade_state.testing.databases import DatabaseCommands
from cascade_state.testing.masking import masked_url
from cascade_state.testing.pool.slots import Slot

__all__ = ["PoolStatistics", "PooledDatabase"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """What the databases of a template are doing, on the whole server, and what this pool object has done."""

    template: str
    ready: int
    leased: int
    recycling: int
    databases: int
    """Of all pools of the server, those that are being dropped included; what `max_databases` bounds."""
    waiting: int
    """Callers of this pool object that wait."""
    initial_size: int
    max_size: int
    max_databases: int | None
    handed_out: int
    returned_clean: int
    returned_dirty: int
    copies_made: int
    copies_failed: int
    recovered: int
    """Databases taken from holders that were gone, or that had been handed out to nobody in particular."""


class PooledDatabase:
    """A database that is its holder's until it is given back."""

    def __init__(self, server: DatabaseCommands, slot: Slot) -> None:
        self.name: str = slot.database
        self.url: str = server.url_for(slot.database)
        self.template: str = slot.template
        self.number: int = slot.number
        self.generation: int = slot.generation
        self.is_clean: bool = False
        self.is_kept: bool = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {masked_url(self.url)}>"

    @property
    def async_url(self) -> str:
        """The URL for SQLAlchemy's asyncio, `postgresql+asyncpg://`."""
        return driver_url(self.url, "asyncpg")

    def keep(self) -> None:
        """Takes the database out of the pool when the lease ends: it stays as it is, for a person to look into."""
        self.is_kept = True

    def keep_clean(self) -> None:
        """Says that the database was not changed: the next holder gets it as it is, at once.

        What a holder whose block raised says is not believed.
        """
        self.is_clean = True
