"""The client's blocking twin: `IntegresqlClient(…).blocking`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

import httpx

from cascade_state.errors import DatabaseInUse, TestDatabaseError
from cascade_state.testing.integresql import calls
from cascade_state.testing.integresql.calls import Call, IntegresqlDatabase
from cascade_state.testing.integresql.database_config import DatabaseConfig

__all__ = ["BlockingIntegresqlClient"]

T = TypeVar("T")

_logger = logging.getLogger("cascade_state.testdb")


class BlockingIntegresqlClient:
    """The methods of `IntegresqlClient`, which say what they do, as blocking calls; usable from any thread."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url = url
        self._options = options
        self._http: httpx.Client | None = None

    def __enter__(self) -> Self:
        self._http = httpx.Client(**self._options)
        return self

    def __exit__(self, *exc_info: object) -> None:
        http, self._http = self._http, None
        if http is not None:
            http.close()

    def initialize_template(self, template_hash: str) -> DatabaseConfig | None:
        """Returns an empty template database to fill; None when there is one, made or being made."""
        try:
            return self._send(calls.initialize_template(template_hash))
        except DatabaseInUse:
            return None

    def finalize_template(self, template_hash: str) -> None:
        """Says that the template is filled."""
        self._send(calls.finalize_template(template_hash))

    def discard_template(self, template_hash: str) -> None:
        """Drops the template and its test databases."""
        self._send(calls.discard_template(template_hash))

    def get_test_database(self, template_hash: str) -> IntegresqlDatabase:
        """Returns a test database of one's own."""
        return self._send(calls.get_test_database(template_hash))

    def unlock(self, template_hash: str, number: int) -> None:
        """Gives a test database back as it is."""
        self._send(calls.unlock(template_hash, number))

    def recreate(self, template_hash: str, number: int) -> None:
        """Gives a test database back to be made anew."""
        self._send(calls.recreate(template_hash, number))

    def reset_all(self) -> None:
        """Makes the server forget all templates and drop all test databases."""
        self._send(calls.reset_all())

    def with_template(self, template_hash: str, setup: Callable[[DatabaseConfig], object]) -> bool:
        """Has the template filled by `setup`, a plain function, unless somebody has or is doing it."""
        config = self.initialize_template(template_hash)
        if config is None:
            return False
        try:
            setup(config)
        except BaseException:
            self._give_up(template_hash)
            raise
        self.finalize_template(template_hash)
        return True

    def _send(self, call: Call[T]) -> T:
        try:
            if self._http is not None:
                return call.answered(self._request(self._http, call))
            with httpx.Client(**self._options) as http:
                return call.answered(self._request(http, call))
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise call.failed(exc) from exc

    def _request(self, http: httpx.Client, call: Call[T]) -> httpx.Response:
        return http.request(call.method, self._url + call.path, json=call.body)

    def _give_up(self, template_hash: str) -> None:
        try:
            self.discard_template(template_hash)
        except TestDatabaseError as exc:  # the set-up's error is what counts
            _logger.warning("the template of a failed set-up was not discarded: %s", exc)
