"""Who takes part in what, with how many items, and who cannot, and why."""

from __future__ import annotations

__all__ = ["CONTESTS", "NOT_MADE_FOR", "TITLES"]

TITLES = {
    "step": "a durable step",
    "due": "due work, claimed and completed",
    "wake-up": "from the event to the handler",
    "database": "a migrated database of its own for a test",
    "busy database": "the same, for a test that works for 30 ms besides",
}

# (workload, tasks) -> who takes part, and with how many items: about a second or two for each of them.
CONTESTS: dict[tuple[str, int], dict[str, int]] = {
    ("step", 1): {
        "asyncpg": 3000,
        "cascade_state": 3000,
        "langgraph": 1500,
        "eventsourcing": 1000,
        "absurd": 1000,
        "dbos": 300,
    },
    ("step", 16): {
        "asyncpg": 8000,
        "cascade_state": 8000,
        "langgraph": 1500,
        "eventsourcing": 1000,
        "absurd": 1600,
        "dbos": 320,
    },
    ("due", 1): {
        "asyncpg": 20000,
        "cascade_state": 20000,
        "cascade_state/worker": 3000,
        "pgqueuer": 10000,
        "oban": 4000,
        "procrastinate": 1000,
        "absurd": 1000,
        "dbos": 300,
    },
    ("wake-up", 1): {
        "asyncpg": 60,
        "cascade_state": 60,
        "pgqueuer": 60,
        "oban": 60,
        "procrastinate": 60,
        "dbos": 60,
        "absurd": 15,
    },
    ("database", 1): {"asyncpg": 30, "cascade_state": 60, "pytest-postgresql": 30, "pgtestdbpy": 30},
    ("busy database", 1): {"asyncpg": 20, "cascade_state": 40, "pytest-postgresql": 20, "pgtestdbpy": 20},
}

_TEST_TOOL = "only makes databases for tests"
_JOBS = "runs jobs, which have no steps"

# What is not in a table, is not forgotten.
NOT_MADE_FOR: dict[str, dict[str, str]] = {
    "step": {"pgqueuer": _JOBS, "oban": _JOBS, "procrastinate": _JOBS},
    "due": {
        "langgraph": "keeps checkpoints; what is due is its caller's matter",
        "eventsourcing": "keeps events; nothing becomes due",
    },
    "wake-up": {
        "langgraph": "keeps checkpoints; nobody is woken",
        "eventsourcing": "its followers of a log are threads that pull, made for throughput",
    },
    "database": {},
    "busy database": {},
}
for _workload in ("step", "due", "wake-up"):
    NOT_MADE_FOR[_workload] |= {"pytest-postgresql": _TEST_TOOL, "pgtestdbpy": _TEST_TOOL}
for _workload in ("database", "busy database"):
    NOT_MADE_FOR[_workload]["the others"] = "leave the tests' databases to their users"
