"""pgtestdbpy: a template made once, and a copy of it for each test."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from benchmarks.peers.workloads import WARM_UPS, Run, Timing, Workload, timed
from cascade_state.postgres.schema import dump_schema


def _tests(pause: float) -> Workload:
    async def run_tests(run: Run) -> Timing:
        psycopg: Any = import_module("psycopg")
        module: Any = import_module("pgtestdbpy")
        parts = urlsplit(run.url)
        query = parse_qs(parts.query)
        place = {"host": quote(query["host"][0], safe=""), "port": int(query["port"][0])}

        def migrate(url: str) -> None:
            with psycopg.connect(url) as connection:
                connection.execute(dump_schema())
                connection.execute("CREATE TABLE note (note_id bigserial PRIMARY KEY, text text NOT NULL)")

        def test(url: str) -> None:
            with psycopg.connect(url) as connection:
                connection.execute("INSERT INTO note (text) VALUES ('one')")
                connection.execute("SELECT count(*) FROM note").fetchone()
            time.sleep(pause)

        # All tests of a round are one session of it.
        name = parts.path.removeprefix("/")
        config = module.Config(user=parts.username, password="", **place)
        migrator = module.Migrator(migrate=migrate, db_name=f"{name}_template", user=f"{name}_user", **place)
        latencies = []
        with module.templates(config, migrator):
            for _ in range(WARM_UPS + run.count):
                start = time.perf_counter()
                with module.clone(config, migrator) as url:
                    test(url)
                latencies.append(time.perf_counter() - start - pause)
        return timed(latencies)

    return Workload(
        run=run_tests,
        does="clone(): a connection, CREATE DATABASE with STRATEGY=FILE_COPY, DROP DATABASE",
        promises="a database that nobody had before; the template is made anew for each session",
    )


WORKLOADS = {"database": _tests(0.0), "busy database": _tests(0.03)}
