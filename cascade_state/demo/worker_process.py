"""A worker process, as its parent sees it: started, listened to, killed or stopped."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter, deque
from typing import Any, Self

from cascade_state.demo.invariants import WorkerLog
from cascade_state.demo.worker import URL_VARIABLE

__all__ = ["WorkerFailed", "WorkerProcess"]

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_SHOWN_LINES = 40


class WorkerFailed(Exception):
    """A worker process ended by itself; the message has what it wrote to standard error."""


class WorkerProcess:
    """One worker process.

    `in_hand` is what it has begun and not finished (claim, business key, step id), and since when;
    `first_began` tells when it began each step for the first time. Both by this process's monotonic clock.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.in_hand: dict[tuple[str, str, str], float] = {}
        self.first_began: dict[tuple[str, str], float] = {}
        self.killed: bool = False
        self.partition_count: int = 0  # how many are its own, as it told last
        self.work_left: int | None = None  # how many flows had not ended when it got its first share
        self._process = process
        self._ready = asyncio.Event()
        self._began: Counter[tuple[str, str]] = Counter()
        self._recorded: Counter[tuple[str, str]] = Counter()
        self._lost: Counter[tuple[str, str]] = Counter()
        self._errors: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._reading = asyncio.gather(self._read_reports(), self._read_errors())

    @classmethod
    async def start(cls, name: str, url: str, schema: str | None, *, options: tuple[str, ...] = ()) -> Self:
        """Returns a worker that is ready to work.

        Raises:
            WorkerFailed: It ended before it was ready.
        """
        arguments = ["-m", "cascade_state.demo.worker", "--name", name, "--stop-with-parent", *options]
        if schema is not None:
            arguments += ["--schema", schema]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, URL_VARIABLE: url},
            # Ctrl-C reaches the parent only, which stops its workers itself.
            start_new_session=True,
        )
        worker = cls(name, process)
        try:
            await worker._wait_until_ready()
        except BaseException:
            await worker.kill()
            raise
        return worker

    @property
    def process_id(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    def log(self) -> WorkerLog:
        """Returns what it told so far."""
        return WorkerLog(
            name=self.name,
            killed=self.killed,
            work_left=self.work_left or 0,
            began=self._began,
            recorded=self._recorded,
            lost=self._lost,
            in_hand=frozenset(self.in_hand),
        )

    def check_alive(self) -> None:
        """Checks that the process runs.

        Raises:
            WorkerFailed: It has ended.
        """
        if self._process.returncode is not None:
            raise self._failure(f"ended by itself with exit code {self._process.returncode}")

    async def kill(self) -> None:
        """Kills the process at once (SIGKILL) and reads what it still told. Harmless when it has ended."""
        if self._process.returncode is None:
            self.killed = True
            self._process.kill()
        await self._process.wait()
        await self._reading

    async def stop(self) -> None:
        """Asks the process to finish what it has in hand, and waits for its end.

        Raises:
            WorkerFailed: It did not end well or in time.
        """
        self.check_alive()
        self._process.terminate()
        try:
            code = await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        except TimeoutError:
            await self.kill()
            raise self._failure(f"did not stop within {_STOP_SECONDS:.0f} s") from None
        await self._reading
        if code != 0:
            raise self._failure(f"ended with exit code {code}")

    async def _wait_until_ready(self) -> None:
        ready = asyncio.create_task(self._ready.wait())
        ended = asyncio.create_task(self._process.wait())
        try:
            done, _ = await asyncio.wait((ready, ended), timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if ready not in done:
                if ended in done:
                    await self._reading
                raise self._failure("did not become ready")
        finally:
            ready.cancel()
            ended.cancel()

    async def _read_reports(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        async for line in self._process.stdout:
            if line.endswith(b"\n"):  # not what a kill cut off
                self._take_in(json.loads(line))

    def _take_in(self, report: dict[str, Any]) -> None:
        what = report["what"]
        if what == "ready":
            self._ready.set()
        elif what == "share":
            self.partition_count = report["partitions"]
        elif what == "began":
            self.in_hand[report["claim"], report["flow"], report["step"]] = time.monotonic()
            self._began[report["flow"], report["step"]] += 1
            self.first_began.setdefault((report["flow"], report["step"]), time.monotonic())
        elif what == "recorded":
            self._recorded[report["flow"], report["step"]] += 1
        elif what in ("finished", "lost"):
            self._lost[report["flow"], report["step"]] += what == "lost"
            self.in_hand.pop((report["claim"], report["flow"], report["step"]), None)

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - for the type checker
        async for line in self._process.stderr:
            self._errors.append(line.decode("utf-8", "replace").rstrip())

    def _failure(self, reason: str) -> WorkerFailed:
        said = "\n".join(f"    {line}" for line in self._errors) or "    (nothing)"
        return WorkerFailed(f"{self.name} {reason}; it wrote to standard error:\n{said}")
