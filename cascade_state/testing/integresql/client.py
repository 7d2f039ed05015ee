"""`IntegresqlClient`: test databases from an IntegreSQL server, ours or the original.

The usual order in each test process: `with_template(hash, setup)`, then `get_test_database(hash)` for each test, then
`recreate` (or `unlock`, when the test changed nothing). Of all processes that come with one hash, one runs `setup`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar

try:
    import httpx
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        "IntegresqlClient needs httpx: install cascade-state[integresql]", name=_missing.name
    ) from _missing

from cascade_state.errors import DatabaseInUse, TestDatabaseError
from cascade_state.testing.integresql import calls
from cascade_state.testing.integresql.calls import Call, IntegresqlDatabase
from cascade_state.testing.integresql.database_config import DatabaseConfig

if TYPE_CHECKING:
    from cascade_state.testing.integresql.blocking_client import BlockingIntegresqlClient

__all__ = ["IntegresqlClient"]

T = TypeVar("T")

_logger = logging.getLogger("cascade_state.testdb")


class IntegresqlClient:
    """Speaks IntegreSQL's API v1.

    Each call stands alone; inside `async with` the calls share connections. All methods raise `ServerUnavailable`
    (503, or no answer), `PermissionDenied` (401), and `TestDatabaseError` for what no other class says.

    Args:
        base_url: Such as `http://127.0.0.1:5000`, with or without `/api/v1`.
        token: A bearer token, for a server that asks for one.
        timeout: Of a request; a server may well let `get_test_database` wait for a minute.
    """

    def __init__(self, base_url: str, *, token: str | None = None, timeout: timedelta = timedelta(seconds=60)) -> None:
        self._url = calls.api_url(base_url)
        self._options = calls.request_options(token, timeout)
        self._http: httpx.AsyncClient | None = None

    @cached_property
    def blocking(self) -> BlockingIntegresqlClient:
        """The same methods for code without an event loop."""
        from cascade_state.testing.integresql.blocking_client import BlockingIntegresqlClient

        return BlockingIntegresqlClient(self._url, self._options)

    async def __aenter__(self) -> Self:
        self._http = httpx.AsyncClient(**self._options)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def initialize_template(self, template_hash: str) -> DatabaseConfig | None:
        """Returns an empty template database to fill; None when there is one, made or being made by somebody.

        The value is a URL that knows its parts.

        Raises:
            InvalidArgument: The server does not serve such a hash.
        """
        try:
            return await self._send(calls.initialize_template(template_hash))
        except DatabaseInUse:
            return None

    async def finalize_template(self, template_hash: str) -> None:
        """Says that the template is filled and that all connections to it are closed.

        Raises:
            TemplateNotFound: It is unknown or was discarded.
            DatabaseInUse: Somebody is still connected to it.
        """
        await self._send(calls.finalize_template(template_hash))

    async def discard_template(self, template_hash: str) -> None:
        """Drops the template and its test databases.

        Raises:
            TemplateNotFound: It is unknown.
            DatabaseInUse: Somebody is connected to it or to one of them.
        """
        await self._send(calls.discard_template(template_hash))

    async def get_test_database(self, template_hash: str) -> IntegresqlDatabase:
        """Returns a test database of one's own; waits until the template is finalized and a copy is free.

        Raises:
            TemplateNotFound: The template is unknown.
            DatabaseDiscarded: The template was discarded meanwhile.
            ServerUnavailable: None became free in time, too.
        """
        return await self._send(calls.get_test_database(template_hash))

    async def unlock(self, template_hash: str, number: int) -> None:
        """Gives a test database back as it is; the next who gets it finds what was changed.

        Raises:
            TemplateNotFound: The template is unknown or has no such database.
            DatabaseInUse: Somebody is connected to it.
        """
        await self._send(calls.unlock(template_hash, number))

    async def recreate(self, template_hash: str, number: int) -> None:
        """Gives a test database back to be made anew; raises as `unlock` does."""
        await self._send(calls.recreate(template_hash, number))

    async def reset_all(self) -> None:
        """Makes the server forget all templates and drop all test databases.

        Raises:
            DatabaseInUse: Somebody is connected to one of them.
        """
        await self._send(calls.reset_all())

    async def with_template(self, template_hash: str, setup: Callable[[DatabaseConfig], Any]) -> bool:
        """Has the template filled by `setup`, unless somebody has or is doing it; tells whether it ran.

        A set-up that raises leaves no template behind: the next caller runs its own. Do not wait for others here:
        `get_test_database` does.

        Args:
            template_hash: Of everything that `setup` does.
            setup: A function or coroutine function; gets the template's URL and closes its connections. A plain
                function runs in a thread.

        Raises:
            Exception: Whatever `setup` raised.
        """
        config = await self.initialize_template(template_hash)
        if config is None:
            return False
        try:
            await _run(setup, config)
        except BaseException:
            await asyncio.shield(self._give_up(template_hash))
            raise
        await self.finalize_template(template_hash)
        return True

    async def _send(self, call: Call[T]) -> T:
        try:
            if self._http is not None:
                return call.answered(await self._request(self._http, call))
            async with httpx.AsyncClient(**self._options) as http:
                return call.answered(await self._request(http, call))
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise call.failed(exc) from exc

    async def _request(self, http: httpx.AsyncClient, call: Call[T]) -> httpx.Response:
        return await http.request(call.method, self._url + call.path, json=call.body)

    async def _give_up(self, template_hash: str) -> None:
        try:
            await self.discard_template(template_hash)
        except TestDatabaseError as exc:  # the set-up's error is what counts
            _logger.warning("the template of a failed set-up was not discarded: %s", exc)


async def _run(setup: Callable[[DatabaseConfig], Any], config: DatabaseConfig) -> None:
    if inspect.iscoroutinefunction(setup):
        await setup(config)
        return
    result = await asyncio.to_thread(setup, config)
    if inspect.isawaitable(result):
        await result
