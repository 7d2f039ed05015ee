"""The pool for code without an event loop: `pool.blocking`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from cascade_state.testing.blocking import run_blocking

if TYPE_CHECKING:
    from cascade_state.testing.pool.database_pool import DatabasePool
    from cascade_state.testing.pool.pooled_database import PooledDatabase, PoolStatistics

__all__ = ["BlockingPool"]

_SHORT = timedelta(seconds=60)


class BlockingPool:
    """What `DatabasePool` does, as blocking calls of the same names; promises and errors are the same.

    Calls may come from any thread, and from inside a running event loop, which they hold up.
    """

    def __init__(self, pool: DatabasePool) -> None:
        self._pool = pool

    @property
    def template(self) -> str:
        """The name of the template database."""
        return self._pool.template

    def open(self) -> Self:
        """Connects and starts making databases; does not wait for them."""
        run_blocking(self._pool.open())
        return self

    def close(self) -> None:
        """Stops the background work; the databases stay."""
        run_blocking(self._pool.close())

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @contextmanager
    def lease(self, *, timeout: timedelta | None = _SHORT) -> Iterator[PooledDatabase]:
        """Yields a database of one's own: `with pool.lease() as database`."""
        lease = self._pool.lease(timeout=timeout)
        database = run_blocking(lease.__aenter__())
        try:
            yield database
        except BaseException as exc:
            run_blocking(lease.__aexit__(type(exc), exc, exc.__traceback__))
            raise
        run_blocking(lease.__aexit__(None, None, None))

    def hand_out(self, *, timeout: timedelta | None = _SHORT) -> PooledDatabase:
        """Returns a database for somebody who holds no session."""
        return run_blocking(self._pool.hand_out(timeout=timeout))

    def take_back(self, number: int, *, clean: bool = False) -> bool:
        """Takes back what `hand_out` gave out; says whether it was out."""
        return run_blocking(self._pool.take_back(number, clean=clean))

    def clear(self) -> tuple[str, ...]:
        """Drops all databases of the pool; returns their names."""
        return run_blocking(self._pool.clear())

    def discard(self) -> tuple[str, ...]:
        """Drops all databases of the pool and closes it; returns their names."""
        return run_blocking(self._pool.discard())

    def statistics(self) -> PoolStatistics:
        """Returns counts of the server as it is now, and of what this object did."""
        return run_blocking(self._pool.statistics())
