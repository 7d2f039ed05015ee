"""The address of a database as the API tells it: in parts, and as a URL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import quote, unquote, urlencode

__all__ = ["DatabaseConfig"]

_HIDDEN = "***"


class DatabaseConfig(str):
    """A `postgresql://` URL that knows its parts: host, port, username, password, database, additional_params."""

    host: str
    port: int
    username: str
    password: str
    database: str
    additional_params: Mapping[str, str]

    def __new__(
        cls,
        *,
        host: str,
        port: int,
        username: str,
        password: str,
        database: str,
        additional_params: Mapping[str, str] | None = None,
    ) -> Self:
        """Puts the URL together; a host that begins with a slash is a directory of sockets."""
        params = dict(additional_params or {})
        self = super().__new__(cls, _url(host, port, username, password, database, params))
        self.host = host
        self.port = port
        self.username = username
        self.password = password
        self.database = database
        self.additional_params = MappingProxyType(params)
        return self

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """Returns the `config` object of an answer as a value; what it does not have is empty."""
        return cls(
            host=config.get("host") or "",
            port=int(config.get("port") or 5432),
            username=config.get("username") or "",
            password=config.get("password") or "",
            database=config.get("database") or "",
            additional_params=config.get("additionalParams") or {},
        )

    def changed(self, **parts: Any) -> Self:
        """Returns the address with these parts in place of the old ones."""
        return type(self)(**{**self._parts(), **parts})

    @property
    def url(self) -> str:
        """The `postgresql://` URL as a plain string."""
        return str.__str__(self)

    @property
    def async_url(self) -> str:
        """The URL with SQLAlchemy's name of the driver: `postgresql+asyncpg://`."""
        return self.url.replace("postgresql://", "postgresql+asyncpg://", 1)

    @property
    def masked_url(self) -> str:
        """The URL for people to read: without its password, and without what was escaped."""
        hidden = _HIDDEN if self.password else ""
        return unquote(_url(self.host, self.port, self.username, hidden, self.database, self.additional_params))

    def to_json(self) -> dict[str, Any]:
        """Returns the `config` object of an answer; `additionalParams` is left out when empty."""
        answer: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "username": self.username,
            "password": self.password,
            "database": self.database,
        }
        return answer | ({"additionalParams": dict(self.additional_params)} if self.additional_params else {})

    def __repr__(self) -> str:
        return f"DatabaseConfig({self.masked_url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._parts()), ()

    def _parts(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in ("host", "port", "username", "password", "database")}
        return parts | {"additional_params": dict(self.additional_params)}


def _url(host: str, port: int, username: str, password: str, database: str, params: Mapping[str, str]) -> str:
    login = quote(username, safe="") + (f":{quote(password, safe='')}" if password else "")
    query = dict(params)
    if host.startswith("/"):
        query |= {"host": host, "port": str(port)}
        netloc = f"{login}@"
    else:
        bracketed = f"[{host}]" if ":" in host else host
        netloc = f"{login}@{bracketed}:{port}" if login else f"{bracketed}:{port}"
    tail = f"?{urlencode(query, safe='/')}" if query else ""
    return f"postgresql://{netloc}/{quote(database, safe='')}{tail}"
