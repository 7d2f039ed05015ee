"""Processor time of this process and of a whole server, sessions that have ended included."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.processor_time import ProcessorTime

__all__ = ["Processor"]


class Processor:
    """Reads it; a test that connects for a moment counts as well, unlike in the figures of the store."""

    def __init__(self, postmaster: int) -> None:
        self._living = ProcessorTime(postmaster)
        self._stat = Path(f"/proc/{postmaster}/stat")
        self._ticks = os.sysconf("SC_CLK_TCK")

    def seconds(self) -> float:
        """Returns the seconds used so far."""
        return sum(self._living.now()) + self._ended()

    def _ended(self) -> float:
        try:
            fields = self._stat.read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[13]) + int(fields[14])) / self._ticks
