"""Bare asyncpg, the floor: the fewest statements that do the work at all."""

from __future__ import annotations

import asyncio
import json
import time
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from benchmarks.databases.ways import build_template, test_once
from benchmarks.peers.workloads import PAYLOAD, WARM_UPS, Run, Timing, WakeUps, Workload, lanes, seconds_of, timed

_BATCH = 100
_TABLES = """
    CREATE TABLE flows (flow_id uuid PRIMARY KEY, version bigint NOT NULL);
    CREATE TABLE results (flow_id uuid, step_id text, outputs json, PRIMARY KEY (flow_id, step_id));
    CREATE TABLE jobs (job_id uuid PRIMARY KEY, due_at timestamptz NOT NULL, payload json, holder text,
                       token bigint NOT NULL DEFAULT 0);
    CREATE INDEX ON jobs (due_at, job_id) WHERE holder IS NULL;
"""
_STEP = """
    WITH moved AS (UPDATE flows SET version = version + 1 WHERE flow_id = $1 AND version = $2 RETURNING flow_id)
    INSERT INTO results SELECT flow_id, $3, $4 FROM moved
    ON CONFLICT (flow_id, step_id) DO UPDATE SET outputs = excluded.outputs
"""
_CLAIM = """
    UPDATE jobs SET holder = 'worker', token = token + 1 FROM (
        SELECT job_id FROM jobs WHERE holder IS NULL AND due_at <= statement_timestamp()
        ORDER BY due_at, job_id LIMIT $1 FOR UPDATE SKIP LOCKED
    ) AS due WHERE jobs.job_id = due.job_id RETURNING jobs.job_id, jobs.token, jobs.payload
"""
_PUBLISH = """
    WITH published AS (INSERT INTO jobs (job_id, due_at, payload) VALUES ($1, statement_timestamp(), $2))
    SELECT pg_notify('jobs', '')
"""
_FINISH = """
    DELETE FROM jobs USING unnest($1::uuid[], $2::bigint[]) AS done (job_id, token)
    WHERE jobs.job_id = done.job_id AND jobs.token = done.token
"""


async def _connections(run: Run, count: int) -> list[Any]:
    asyncpg: Any = import_module("asyncpg")
    connections = [await asyncpg.connect(run.url) for _ in range(count)]
    await connections[0].execute(_TABLES)
    return connections


async def _step(run: Run) -> Timing:
    connections = await _connections(run, run.tasks)
    flows = [uuid4() for _ in connections]
    await connections[0].executemany("INSERT INTO flows VALUES ($1, 0)", [(flow_id,) for flow_id in flows])

    async def operation(lane: int, index: int) -> None:
        await connections[lane].execute(_STEP, flows[lane], index, f"s{index % 3}", json.dumps(PAYLOAD))

    return await lanes(run, operation)


async def _due(run: Run) -> Timing:
    (connection,) = await _connections(run, 1)
    rows = [(uuid4(), json.dumps(PAYLOAD)) for _ in range(run.count)]
    insert = "INSERT INTO jobs (job_id, due_at, payload) VALUES ($1, statement_timestamp(), $2)"
    inserted = await seconds_of(connection.executemany(insert, rows))

    async def drain() -> None:
        while jobs := await connection.fetch(_CLAIM, _BATCH):
            await connection.execute(_FINISH, [job["job_id"] for job in jobs], [job["token"] for job in jobs])

    return Timing(items=run.count, insert_seconds=inserted, seconds=await seconds_of(drain()))


async def _wake_up(run: Run) -> Timing:
    publishing, listening, working = await _connections(run, 3)
    wake_ups, heard = WakeUps(), asyncio.Event()
    await listening.add_listener("jobs", lambda *_: heard.set())

    async def work() -> None:
        while await heard.wait():
            heard.clear()
            jobs = await working.fetch(_CLAIM, _BATCH)
            wake_ups.begin()
            await working.execute(_FINISH, [job["job_id"] for job in jobs], [job["token"] for job in jobs])

    worker = asyncio.create_task(work())
    payload = json.dumps(PAYLOAD)
    timing = await wake_ups.measure(run.count, lambda number: publishing.execute(_PUBLISH, uuid4(), payload))
    worker.cancel()
    return timing


def _tests(pause: float) -> Workload:
    async def run_tests(run: Run) -> Timing:
        asyncpg: Any = import_module("asyncpg")
        name = urlsplit(run.url).path.removeprefix("/")
        await build_template(run.url)
        connection = await asyncpg.connect(run.url.replace(f"/{name}?", "/postgres?", 1))
        latencies = []
        for _ in range(WARM_UPS + run.count):
            start = time.perf_counter()
            await connection.execute(f"CREATE DATABASE {name}_copy TEMPLATE {name}")
            await test_once(run.url.replace(f"/{name}?", f"/{name}_copy?", 1), pause)
            await connection.execute(f"DROP DATABASE {name}_copy")
            latencies.append(time.perf_counter() - start - pause)
        return timed(latencies)

    return Workload(
        run=run_tests,
        does="CREATE DATABASE from a template, DROP DATABASE, on a connection that is kept",
        promises="a database that nobody had before",
    )


WORKLOADS = {
    "step": Workload(
        run=_step,
        does="one statement: version checked, one row of the step's result",
        promises="refused when the version has moved on",
    ),
    "due": Workload(
        run=_due,
        does="one statement claims 100, one that checks their tokens deletes them",
        promises="refused when another claim came between; no lease, so nobody takes over",
    ),
    "wake-up": Workload(
        run=_wake_up,
        does="a row and pg_notify in one statement; who hears it claims by one statement, then handles",
        promises="who was not listening finds it when it claims again",
    ),
    "database": _tests(0.0),
    "busy database": _tests(0.03),
}
