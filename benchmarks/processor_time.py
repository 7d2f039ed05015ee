"""Processor time of this process and of the server: what a neighbour on the machine disturbs least."""

from __future__ import annotations

import os
import resource
from pathlib import Path

__all__ = ["ProcessorTime"]

_PROC = Path("/proc")


class ProcessorTime:
    """Reads both; the server's stays 0 where the system has no /proc/*/schedstat, or the server is elsewhere."""

    def __init__(self, postmaster: int | None) -> None:
        self._postmaster = postmaster

    def now(self) -> tuple[float, float]:
        """Returns the seconds used so far by this process, and by the server's processes that live now."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime, self._server()

    def _server(self) -> float:
        if self._postmaster is None or not _PROC.is_dir():
            return 0.0
        nanoseconds = 0
        for name in os.listdir(_PROC):
            if name.isdigit():
                try:
                    if _parent(_PROC / name) == self._postmaster:
                        nanoseconds += int((_PROC / name / "schedstat").read_text().split()[0])
                except (OSError, IndexError):  # it has ended, or the kernel keeps no such figures
                    continue
        return nanoseconds / 1e9


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])
