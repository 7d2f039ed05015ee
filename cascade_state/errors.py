"""Every error that cascade_state raises.

The tree, by what the caller can do about it:

    CascadeStateError
    ├── UsageError                 the caller's mistake; never retry
    │   ├── UnitOfWorkNotOpen · UnitOfWorkFinished · StoreNotOpen
    │   ├── InvalidTransition (ValueError)      from_status, to_status
    │   ├── InvalidArgument (ValueError)        argument, path, reason
    │   └── InvalidDefinition (ValueError)      flow_id, step_id, reason
    ├── NotFound (LookupError)     entity, key
    │   ├── FlowDefinitionNotFound · FlowInstanceNotFound · ComponentStateNotFound · TimerNotFound
    │   └── FeedConsumerNotFound
    ├── Conflict                   somebody was first
    │   ├── AlreadyExists          entity, key, existing_id
    │   ├── VersionConflict        expected_version, actual_version
    │   ├── LeaseLost              entity, key, token, holder
    │   └── FlowDefinitionInUse    flow_id, instance_count
    ├── LockNotAcquired (TimeoutError) · LockLost
    ├── StoreError                 the back end failed
    │   ├── StoreUnavailable       retryable
    │   ├── TransactionAborted     retryable: serialization, deadlock
    │   ├── SerializationError     a stored document cannot be read back; entity, key
    │   └── SchemaMismatch         expected, found
    └── TestDatabaseError          testing: DatabaseAlreadyExists · DatabaseNotFound · DatabaseInUse ·
                                   InvalidDatabaseName · PermissionDenied · ServerUnavailable · TemplateBusy ·
                                   PoolTimeout · PoolClosed · TemplateNotFound · DatabaseDiscarded

Each class builds its message from keyword-only facts, keeps them as attributes, and pickles. No message,
attribute or repr carries a payload or a password. Anybody above `ids` may import this module.
"""

from __future__ import annotations

from functools import partial
from typing import Any

__all__ = [
    "AlreadyExists",
    "CascadeStateError",
    "ComponentStateNotFound",
    "Conflict",
    "DatabaseAlreadyExists",
    "DatabaseDiscarded",
    "DatabaseInUse",
    "DatabaseNotFound",
    "FeedConsumerNotFound",
    "FlowDefinitionInUse",
    "FlowDefinitionNotFound",
    "FlowInstanceNotFound",
    "InvalidArgument",
    "InvalidDatabaseName",
    "InvalidDefinition",
    "InvalidTransition",
    "LeaseLost",
    "LockLost",
    "LockNotAcquired",
    "NotFound",
    "PermissionDenied",
    "PoolClosed",
    "PoolTimeout",
    "SchemaMismatch",
    "SerializationError",
    "ServerUnavailable",
    "StoreError",
    "StoreNotOpen",
    "StoreUnavailable",
    "TemplateBusy",
    "TemplateNotFound",
    "TestDatabaseError",
    "TimerNotFound",
    "TransactionAborted",
    "UnitOfWorkFinished",
    "UnitOfWorkNotOpen",
    "UsageError",
    "VersionConflict",
]


class CascadeStateError(Exception):
    """Anything that cascade_state raises on purpose."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self._facts = facts
        for name, value in facts.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return (partial(_rebuild, type(self), str(self), self._facts), ())


def _rebuild(cls: type[CascadeStateError], message: str, facts: dict[str, Any]) -> CascadeStateError:
    error = cls.__new__(cls)
    CascadeStateError.__init__(error, message, **facts)
    return error


def _shown(value: object, limit: int = 80) -> str:
    """Returns a short, one-line form of a key: enough to recognise it, never enough to flood a log."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class UsageError(CascadeStateError):
    """The call cannot work as written. Mend the calling code; a retry gives the same answer."""


class UnitOfWorkNotOpen(UsageError):
    """A unit of work was used before it was entered. Use it inside `async with store.begin() as uow:`."""

    def __init__(self) -> None:
        super().__init__("the unit of work is not open; use it inside `async with store.begin() as uow:`")


class UnitOfWorkFinished(UsageError):
    """A unit of work was used after it ended. Begin a new one."""

    def __init__(self) -> None:
        super().__init__("the unit of work is finished; begin a new one")


class StoreNotOpen(UsageError):
    """A store was used before it was entered or after it was closed. Use it inside `async with open_store(…)`."""

    def __init__(self) -> None:
        super().__init__("the store is not open; use it inside `async with open_store(…) as store:`")


class InvalidTransition(UsageError, ValueError):
    """The flow instance's status forbids this transition. Nothing changed; look at `status` first."""

    from_status: str
    to_status: str

    def __init__(self, from_status: str, to_status: str) -> None:
        super().__init__(
            f"a flow instance cannot go from {from_status!s} to {to_status!s}",
            from_status=from_status,
            to_status=to_status,
        )


class InvalidArgument(UsageError, ValueError):
    """An argument, or a value inside a document (`path`), cannot be stored or used. Nothing was sent."""

    argument: str
    path: str
    reason: str

    def __init__(self, *, argument: str, reason: str, path: str = "") -> None:
        where = f"{argument} at {_shown(path, 200)}" if path else argument
        super().__init__(f"{where}: {reason}", argument=argument, path=path, reason=reason)


class InvalidDefinition(UsageError, ValueError):
    """A flow definition contradicts itself; `step_id` names the step at fault (None: the whole). Nothing was sent."""

    flow_id: str
    step_id: str | None
    reason: str

    def __init__(self, *, flow_id: str, reason: str, step_id: str | None = None) -> None:
        step = f", step {_shown(step_id)}" if step_id is not None else ""
        super().__init__(
            f"flow definition {_shown(flow_id)}{step}: {reason}",
            flow_id=flow_id,
            step_id=step_id,
            reason=reason,
        )


class NotFound(CascadeStateError, LookupError):
    """Nothing is stored under this key."""

    entity: str
    key: Any

    def __init__(self, *, entity: str, key: Any) -> None:
        super().__init__(f"{entity} {_shown(key)} does not exist", entity=entity, key=key)


class FlowDefinitionNotFound(NotFound):
    """No such flow definition (or version) is deployed. Deploy it, or ask for another version."""

    def __init__(self, *, key: Any) -> None:
        super().__init__(entity="flow definition", key=key)


class FlowInstanceNotFound(NotFound):
    """No such flow instance is stored; it was never added, or was removed or purged."""

    def __init__(self, *, key: Any) -> None:
        super().__init__(entity="flow instance", key=key)


class ComponentStateNotFound(NotFound):
    """No component state is stored for this flow instance and step, or it has expired."""

    def __init__(self, *, key: Any) -> None:
        super().__init__(entity="component state", key=key)


class TimerNotFound(NotFound):
    """No such timer is stored; it was completed, cancelled, or went with its flow."""

    def __init__(self, *, key: Any) -> None:
        super().__init__(entity="timer", key=key)


class FeedConsumerNotFound(NotFound):
    """No consumer of the feed has this name; it was never registered (its first run does that), or was removed."""

    def __init__(self, *, key: Any) -> None:
        super().__init__(entity="feed consumer", key=key)


class Conflict(CascadeStateError):
    """Somebody else was first. Read again and decide; a blind retry gives the same answer."""


class AlreadyExists(Conflict):
    """The key is taken; `existing_id` tells by whom, where that is known."""

    entity: str
    key: Any
    existing_id: Any

    def __init__(self, *, entity: str, key: Any, existing_id: Any = None) -> None:
        holder = f" (as {existing_id})" if existing_id is not None else ""
        super().__init__(
            f"{entity} {_shown(key)} already exists{holder}", entity=entity, key=key, existing_id=existing_id
        )


class VersionConflict(Conflict):
    """The row has another version than the one this write was based on. Nothing was written; read it again."""

    entity: str
    key: Any
    expected_version: int
    actual_version: int

    def __init__(self, *, expected_version: int, actual_version: int, entity: str = "row", key: Any = None) -> None:
        super().__init__(
            f"{entity} {_shown(key)} is at version {actual_version}, not {expected_version}",
            entity=entity,
            key=key,
            expected_version=expected_version,
            actual_version=actual_version,
        )


class LeaseLost(Conflict):
    """The lease this write relied on is not current any more. Nothing was written; drop the work in hand."""

    entity: str
    key: Any
    token: int | None
    holder: str | None

    def __init__(self, *, entity: str, key: Any, token: int | None = None, holder: str | None = None) -> None:
        super().__init__(
            f"the lease on {entity} {_shown(key)} (token {token}, holder {_shown(holder)}) is not current",
            entity=entity,
            key=key,
            token=token,
            holder=holder,
        )


class FlowDefinitionInUse(Conflict):
    """Flow instances that have not ended still refer to the definition. Let them end, or force."""

    flow_id: str
    instance_count: int

    def __init__(self, *, flow_id: str, instance_count: int) -> None:
        super().__init__(
            f"flow definition {_shown(flow_id)} is used by {instance_count} flow instance(s) that have not ended",
            flow_id=flow_id,
            instance_count=instance_count,
        )


class LockNotAcquired(CascadeStateError, TimeoutError):
    """The advisory lock was not free within the time-out; `waited` is in seconds."""

    lock_name: Any
    waited: float

    def __init__(self, *, lock_name: Any, waited: float) -> None:
        super().__init__(
            f"lock {_shown(lock_name)} was not acquired within {waited:.3f} s",
            lock_name=lock_name,
            waited=waited,
        )


class LockLost(CascadeStateError):
    """The advisory lock is not held any more: its connection ended, or it was released. Stop what it protected."""

    lock_name: Any
    reason: str

    def __init__(self, *, lock_name: Any, reason: str = "its connection ended") -> None:
        super().__init__(f"lock {_shown(lock_name)} is lost: {reason}", lock_name=lock_name, reason=reason)


class StoreError(CascadeStateError):
    """The back end failed; the driver's error, where there is one, is the `__cause__`."""

    sqlstate: str | None

    def __init__(self, message: str, *, sqlstate: str | None = None, **facts: Any) -> None:
        super().__init__(message, sqlstate=sqlstate, **facts)


class StoreUnavailable(StoreError):
    """The back end cannot be reached, or a connection broke or could not be had in time. Retry the whole unit of work.

    An error while committing does not mean "not committed": re-send with the same ids or idempotency keys.
    When an embedded server does not start, `log_tail` is what it said last.
    """

    reason: str
    log_tail: str

    def __init__(self, *, reason: str, sqlstate: str | None = None, log_tail: str = "") -> None:
        super().__init__(f"the store is unavailable: {reason}", sqlstate=sqlstate, reason=reason, log_tail=log_tail)


class TransactionAborted(StoreError):
    """The transaction lost against another one (serialization failure, deadlock, lock time-out). Retry all of it."""

    def __init__(self, *, reason: str, sqlstate: str | None = None) -> None:
        super().__init__(f"the transaction was aborted: {reason}", sqlstate=sqlstate, reason=reason)


class SerializationError(StoreError):
    """A stored document cannot be read back. The row is left as it is; mend it by its key."""

    entity: str
    key: Any
    reason: str

    def __init__(self, *, entity: str, key: Any, reason: str) -> None:
        super().__init__(f"{entity} {_shown(key)} cannot be read: {reason}", entity=entity, key=key, reason=reason)


class SchemaMismatch(StoreError):
    """The database's schema is not the one this version of the library works with. Migrate, or change versions."""

    expected: Any
    found: Any

    def __init__(self, *, expected: Any, found: Any, reason: str = "") -> None:
        detail = f" ({reason})" if reason else ""
        super().__init__(
            f"the schema does not match: expected {expected}, found {found}{detail}",
            expected=expected,
            found=found,
            reason=reason,
        )


class TestDatabaseError(CascadeStateError):
    """The testing toolkit could not do what was asked of a test server or test database."""

    __test__ = False  # not a test class, whatever pytest thinks of the name


class DatabaseAlreadyExists(TestDatabaseError):
    """A database of this name exists already."""

    database: str

    def __init__(self, *, database: str) -> None:
        super().__init__(f"database {_shown(database)} already exists", database=database)


class DatabaseNotFound(TestDatabaseError):
    """No database of this name exists."""

    database: str

    def __init__(self, *, database: str) -> None:
        super().__init__(f"database {_shown(database)} does not exist", database=database)


class DatabaseInUse(TestDatabaseError):
    """Somebody is connected to the database; `connections` lists (pid, application name)."""

    database: str
    connections: tuple[tuple[int, str], ...]

    def __init__(self, *, database: str, connections: tuple[tuple[int, str], ...] = ()) -> None:
        users = ", ".join(f"{name or 'unnamed'} (pid {pid})" for pid, name in connections) or "another session"
        super().__init__(
            f"database {_shown(database)} is in use by {users}", database=database, connections=connections
        )


class InvalidDatabaseName(TestDatabaseError, ValueError):
    """The name cannot be a database's: empty, with a NUL, not text, or longer than 63 bytes of UTF-8."""

    database: Any
    reason: str

    def __init__(self, *, database: Any, reason: str) -> None:
        super().__init__(f"database name {_shown(database)}: {reason}", database=database, reason=reason)


class PermissionDenied(TestDatabaseError):
    """The server refuses this role (wrong password, or a missing right)."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(f"permission denied: {reason}", reason=reason)


class ServerUnavailable(TestDatabaseError):
    """The test server cannot be started or reached; `reason` says why, `log_tail` what the server last said."""

    reason: str
    log_tail: str

    def __init__(self, *, reason: str, log_tail: str = "") -> None:
        super().__init__(f"the test server is unavailable: {reason}", reason=reason, log_tail=log_tail)


class TemplateBusy(TestDatabaseError, TimeoutError):
    """Somebody else was still building the template database when the time-out passed; wait longer, or see to them."""

    process_id: int | None
    application_name: str

    def __init__(self, *, template: str, process_id: int | None = None, application_name: str = "") -> None:
        holder = f"{application_name or 'unnamed'} (pid {process_id})" if process_id is not None else "another session"
        super().__init__(
            f"template database {_shown(template)} is being built by {holder}",
            template=template,
            process_id=process_id,
            application_name=application_name,
        )


class PoolTimeout(TestDatabaseError, TimeoutError):
    """No test database of the pool became free in time; return what is leased, wait longer, or raise `max_size`.

    `reason` tells what held the pool up.
    """

    template: str
    waited: float
    reason: str

    def __init__(self, *, template: str, waited: float, reason: str = "") -> None:
        super().__init__(
            f"no test database of template {_shown(template)} became free within {waited:.1f} s"
            + (f": {reason}" if reason else ""),
            template=template,
            waited=waited,
            reason=reason,
        )


class PoolClosed(TestDatabaseError):
    """The pool of test databases is not open, or was closed while this caller waited. Use it inside `async with`."""

    template: str

    def __init__(self, *, template: str) -> None:
        super().__init__(f"the pool of template {_shown(template)} is not open", template=template)


class TemplateNotFound(TestDatabaseError):
    """No template is known under this hash, or it has no such test database. Initialize and finalize it first."""

    template: str
    reason: str

    def __init__(self, *, template: str, reason: str = "") -> None:
        super().__init__(
            reason or f"no template is known under the hash {_shown(template)}", template=template, reason=reason
        )


class DatabaseDiscarded(TestDatabaseError):
    """The template was discarded while this caller waited for a test database. Initialize it again."""

    template: str

    def __init__(self, *, template: str) -> None:
        super().__init__(f"the template of hash {_shown(template)} was discarded", template=template)
