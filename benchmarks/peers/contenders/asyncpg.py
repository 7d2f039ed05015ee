"""Bare asyncpg, the floor: the fewest statements that do the work at all."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any
from uuid import uuid4

from benchmarks.peers.workloads import PAYLOAD, Run, Timing, Workload, lanes, seconds_of

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


WORKLOADS = {
    "step": Workload(run=_step, does="one statement: version checked, one row of the step's result"),
    "due": Workload(run=_due, does="one statement claims 100, one that checks their tokens deletes them"),
}
