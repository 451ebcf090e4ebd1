"""Who else used the processors during a measurement: read from /proc before and after, without a process of its own."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from profilers.machine import available_cores

_IDLE, _IOWAIT, _STEAL = 3, 4, 7  # columns of the `cpu` line in /proc/stat


@dataclass(frozen=True, slots=True)
class Contention:
    """Shares of one core, averaged over the measurement; None where the system does not tell.

    Attributes:
        others: cores kept busy by other processes (0.9 = nearly one core).
        waiting: share of the time that our threads stood in the run queue (per thread, 0 to 1).
        stolen: cores that the hypervisor gave to other machines.
    """

    others: float | None
    waiting: float | None
    stolen: float | None
    cores: int


class ContentionMeter:
    """Measures between `start` and `stop`."""

    def __init__(self) -> None:
        self._cores = os.cpu_count() or available_cores()
        self._begin = self._snapshot()

    def start(self) -> None:
        """Begin now."""
        self._begin = self._snapshot()

    def stop(self, threads: int) -> Contention:
        """What happened since the start, for a measurement that used `threads` threads."""
        begin, end = self._begin, self._snapshot()
        wall = max(end.wall - begin.wall, 1e-9)
        if begin.busy is None or end.busy is None or begin.stolen is None or end.stolen is None:
            return Contention(None, None, None, self._cores)
        own = end.own - begin.own
        waiting = None if begin.waited is None or end.waited is None else (end.waited - begin.waited) / wall / threads
        return Contention(
            others=max(0.0, (end.busy - begin.busy - own) / wall),
            waiting=None if waiting is None else max(0.0, waiting),
            stolen=max(0.0, (end.stolen - begin.stolen) / wall),
            cores=self._cores,
        )

    def _snapshot(self) -> _Snapshot:
        busy, stolen = _system_seconds()
        used = resource.getrusage(resource.RUSAGE_SELF)
        return _Snapshot(time.perf_counter(), busy, stolen, used.ru_utime + used.ru_stime, _waited_seconds())


@dataclass(frozen=True, slots=True)
class _Snapshot:
    wall: float
    busy: float | None
    stolen: float | None
    own: float
    waited: float | None


def _system_seconds(path: Path = Path("/proc/stat")) -> tuple[float | None, float | None]:
    """(seconds that all cores were busy, seconds stolen) since boot."""
    try:
        fields = [int(field) for field in path.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
        tick = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None, None
    work = sum(fields[:_STEAL]) - fields[_IDLE] - fields[_IOWAIT]
    return work / tick, (fields[_STEAL] if len(fields) > _STEAL else 0) / tick


def _waited_seconds() -> float | None:
    """Seconds that the threads of this process stood in the run queue, ready to run."""
    total = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            total += int((task / "schedstat").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return total / 1e9
