"""The calls of the client without the wire: what to send, and what the answer means. Both clients use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from cascade_state.errors import (
    DatabaseDiscarded,
    DatabaseInUse,
    InvalidArgument,
    PermissionDenied,
    ServerUnavailable,
    TemplateNotFound,
    TestDatabaseError,
)
from cascade_state.testing.integresql.database_config import DatabaseConfig

__all__ = ["Call", "IntegresqlDatabase", "api_url", "request_options"]

T = TypeVar("T")

_API = "/api/v1"


@dataclass(frozen=True, slots=True)
class IntegresqlDatabase:
    """A test database that was handed out: its number, and where it is."""

    id: int
    template_hash: str
    config: DatabaseConfig

    @property
    def name(self) -> str:
        """The database's name."""
        return self.config.database

    @property
    def url(self) -> str:
        """The `postgresql://` URL."""
        return self.config.url

    @property
    def async_url(self) -> str:
        """The `postgresql+asyncpg://` URL."""
        return self.config.async_url


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    subject: str
    template_hash: str = ""
    body: dict[str, Any] | None = None

    def answered(self, response: httpx.Response) -> T:
        """Returns what the call returns, or raises what the status says."""
        if response.status_code < 400:
            try:
                return self.read(response)
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                raise TestDatabaseError(f"the answer to {self.method} {self.path} makes no sense") from exc
        raise self._error(response)

    def failed(self, exc: Exception) -> ServerUnavailable:
        """Returns the error of a request that got no answer."""
        reason = "did not answer in time" if isinstance(exc, httpx.TimeoutException) else str(exc) or type(exc).__name__
        return ServerUnavailable(reason=f"{self.method} {self.path}: {reason}")

    def _error(self, response: httpx.Response) -> Exception:
        status, text = response.status_code, _message(response)
        if status in (401, 403):
            return PermissionDenied(reason=text)
        if status == 404:
            return TemplateNotFound(template=self.template_hash, reason=text)
        if status == 410:
            return DatabaseDiscarded(template=self.template_hash)
        if status == 423:
            return DatabaseInUse(database=self.subject)
        if status in (502, 503, 504):
            return ServerUnavailable(reason=text.removeprefix("the test server is unavailable: "))
        if status == 400:
            return InvalidArgument(argument="template_hash", reason=text)
        return TestDatabaseError(f"{self.method} {self.path} was answered with {status}: {text}")


def initialize_template(template_hash: str) -> Call[DatabaseConfig | None]:
    return Call(
        "POST",
        "/templates",
        lambda response: DatabaseConfig.from_json(response.json()["database"]["config"]),
        template_hash,
        template_hash,
        {"hash": template_hash},
    )


def finalize_template(template_hash: str) -> Call[None]:
    return Call("PUT", f"/templates/{_part(template_hash)}", _nothing, template_hash, template_hash)


def discard_template(template_hash: str) -> Call[None]:
    return Call("DELETE", f"/templates/{_part(template_hash)}", _nothing, template_hash, template_hash)


def get_test_database(template_hash: str) -> Call[IntegresqlDatabase]:
    return Call("GET", f"/templates/{_part(template_hash)}/tests", _database, template_hash, template_hash)


def unlock(template_hash: str, number: int) -> Call[None]:
    return _of_test("unlock", template_hash, number)


def recreate(template_hash: str, number: int) -> Call[None]:
    return _of_test("recreate", template_hash, number)


def reset_all() -> Call[None]:
    return Call("DELETE", "/admin/templates", _nothing, "all templates")


def api_url(base_url: str) -> str:
    """Returns the URL of the API; the base may end with `/api` or `/api/v1`, as some clients have it, or without."""
    base = base_url.rstrip("/")
    if base.endswith(_API):
        return base
    return base + _API.removeprefix("/api") if base.endswith("/api") else base + _API


def request_options(token: str | None, timeout: timedelta) -> dict[str, Any]:
    """Returns what both of httpx's clients are made with."""
    return {
        "headers": {"Authorization": f"Bearer {token}"} if token is not None else {},
        "timeout": httpx.Timeout(timeout.total_seconds(), connect=min(10.0, timeout.total_seconds())),
        # A proxy of the environment cannot know a server on this machine or in this composition.
        "trust_env": False,
    }


def _of_test(what: str, template_hash: str, number: int) -> Call[None]:
    path = f"/templates/{_part(template_hash)}/tests/{number:d}/{what}"
    return Call("POST", path, _nothing, f"{template_hash}, number {number}", template_hash)


def _part(text: str) -> str:
    # Dots as well: a part that is "." or ".." would be resolved on the way.
    return quote(text, safe="").replace(".", "%2E")


def _nothing(_: httpx.Response) -> None:
    return None


def _database(response: httpx.Response) -> IntegresqlDatabase:
    answer = response.json()
    database = answer["database"]
    return IntegresqlDatabase(answer["id"], database["templateHash"], DatabaseConfig.from_json(database["config"]))


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(response.text.split())[:200] or f"status {response.status_code}"
