"""Energy per inference where the processor counts it: RAPL under /sys/class/powercap (Linux, Intel and AMD).

The counters are those of whole packages, idle power and other processes included: compare models, not machines.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Counter:
    """One package: microjoules so far, and where they start again from 0."""

    path: Path
    largest: int

    def read(self) -> int:
        """Microjoules.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        return int((self.path / "energy_uj").read_text(encoding="ascii"))


def counters(folder: Path = POWERCAP) -> tuple[Counter, ...]:
    """Readable counters of whole packages (`intel-rapl:0`), not of their parts (`intel-rapl:0:0`)."""
    found = []
    for path in sorted(folder.glob("intel-rapl:*")):
        if path.name.count(":") != 1:
            continue
        try:
            counter = Counter(path, int((path / "max_energy_range_uj").read_text(encoding="ascii")))
            counter.read()
        except (OSError, ValueError):  # newer kernels let only root read them
            continue
        found.append(counter)
    return tuple(found)


def joules_per_run(run: Callable[[], object], seconds: float = SECONDS, folder: Path = POWERCAP) -> float | None:
    """Joules of all packages per call of `run`, over at least `seconds` (RAPL counts in steps of a millisecond).

    None where the system does not tell.
    """
    known = counters(folder)
    if not known:
        return None
    try:
        before = [counter.read() for counter in known]
        count, end = 0, time.perf_counter() + seconds
        while count == 0 or time.perf_counter() < end:
            run()
            count += 1
        after = [counter.read() for counter in known]
    except (OSError, ValueError):
        return None
    used = sum(
        now - then if now >= then else now - then + counter.largest
        for counter, then, now in zip(known, before, after, strict=True)
    )
    return used * 1e-6 / count
