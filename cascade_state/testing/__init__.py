"""What users import in their tests: a clock, servers, a database per test, hashes; the contract suite beside it.

Importing this package imports no driver; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cascade_state.errors import (
        DatabaseAlreadyExists,
        DatabaseDiscarded,
        DatabaseInUse,
        DatabaseNotFound,
        InvalidDatabaseName,
        PermissionDenied,
        PoolClosed,
        PoolTimeout,
        ServerUnavailable,
        TemplateBusy,
        TemplateNotFound,
        TestDatabaseError,
    )
    from cascade_state.testing.clock import FrozenClock
    from cascade_state.testing.databases import TemporaryDatabase
    from cascade_state.testing.fault_plan import FaultPlan
    from cascade_state.testing.faults import Fault, FaultKind, FiredFault
    from cascade_state.testing.hashing import DirectoryHash, hash_directory, migration_hash
    from cascade_state.testing.integresql.calls import IntegresqlDatabase
    from cascade_state.testing.integresql.client import IntegresqlClient
    from cascade_state.testing.integresql.database_config import DatabaseConfig
    from cascade_state.testing.pool import BlockingPool, DatabasePool, PooledDatabase, PoolStatistics
    from cascade_state.testing.server import PostgresServer, shared_server

__all__ = [
    "BlockingPool",
    "DatabaseAlreadyExists",
    "DatabaseConfig",
    "DatabaseDiscarded",
    "DatabaseInUse",
    "DatabaseNotFound",
    "DatabasePool",
    "DirectoryHash",
    "Fault",
    "FaultKind",
    "FaultPlan",
    "FiredFault",
    "FrozenClock",
    "IntegresqlClient",
    "IntegresqlDatabase",
    "InvalidDatabaseName",
    "PermissionDenied",
    "PoolClosed",
    "PoolStatistics",
    "PoolTimeout",
    "PooledDatabase",
    "PostgresServer",
    "ServerUnavailable",
    "TemplateBusy",
    "TemplateNotFound",
    "TemporaryDatabase",
    "TestDatabaseError",
    "hash_directory",
    "migration_hash",
    "shared_server",
]

# Relative to this package, as in an import; one more dot leads to the package around it.
_HOMES = {
    "BlockingPool": "pool",
    "DatabaseAlreadyExists": ".errors",
    "DatabaseConfig": "integresql.database_config",
    "DatabaseDiscarded": ".errors",
    "DatabaseInUse": ".errors",
    "DatabaseNotFound": ".errors",
    "DatabasePool": "pool",
    "DirectoryHash": "hashing",
    "Fault": "faults",
    "FaultKind": "faults",
    "FaultPlan": "fault_plan",
    "FiredFault": "faults",
    "FrozenClock": "clock",
    "IntegresqlClient": "integresql.client",
    "IntegresqlDatabase": "integresql.calls",
    "InvalidDatabaseName": ".errors",
    "PermissionDenied": ".errors",
    "PoolClosed": ".errors",
    "PoolStatistics": "pool",
    "PoolTimeout": ".errors",
    "PooledDatabase": "pool",
    "PostgresServer": "server",
    "ServerUnavailable": ".errors",
    "TemplateBusy": ".errors",
    "TemplateNotFound": ".errors",
    "TemporaryDatabase": "databases",
    "TestDatabaseError": ".errors",
    "hash_directory": "hashing",
    "migration_hash": "hashing",
    "shared_server": "server",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
