"""Points of a sweep in several processes.

The first point runs here, so that the original is traced, evaluated and exported once; its results go to the workers.
Points of one method, and combinations that begin alike, run one after the other in one worker, which keeps the caches
(spectra, channel groups) and the steps that they share.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_cli.console import Out
from compress_cli.quantities import format_bytes
from compress_cli.session import Interrupted, Shared

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from compress_cli.config import RunConfig
    from compress_cli.sweeping import Point, Result

PORTABLE = ("complexity", "original scores", "original onnx", "original size", "checkpoint size")
"""What a worker is told about the original."""
LOOK_EVERY = 0.5
"""Seconds between two looks at the workers' memory."""


def run_in_workers(
    base: RunConfig,
    points: Sequence[Point],
    folder: Path,
    out: Out,
    shared: Shared,
    done: Callable[[Result], None],
    *,
    resume: bool,
    workers: int,
    memory: int | None,
) -> None:
    """Run all points and call `done` with each result, in the order in which they end.

    Args:
        memory: bytes that one worker may hold.

    Raises:
        Interrupted: stopped from outside; the workers are stopped, too.
    """
    from compress_cli.pipeline import prime
    from compress_cli.sweeping import run_point

    first, *others = points
    done(run_point(base, first, folder, out, shared, resume=resume))
    if not set(PORTABLE[:3:2]) <= set(shared.portable(PORTABLE)):
        prime(base, out, shared)  # the first point failed early, or was finished before
    queue = _groups(others)
    running: list[_Worker] = []
    known = shared.portable(PORTABLE)
    try:
        while queue or running:
            while queue and len(running) < workers:
                running.append(_Worker(base, queue.pop(0), folder, known, shared.folder, resume))
            wait([worker.results for worker in running], timeout=LOOK_EVERY)
            for worker in list(running):
                for result in worker.finished():
                    done(result)
                if reason := worker.trouble(memory):
                    done(worker.give_up(reason))
                if worker.ended:
                    running.remove(worker)
                    worker.process.join(10)
                    if worker.left:  # the next point gets a fresh process
                        queue.insert(0, worker.left)
    except KeyboardInterrupt as error:
        again = "continue with the same command and --resume"
        raise Interrupted("interrupted; the finished points stay", again) from error
    finally:
        for worker in running:
            worker.stop()


def _groups(points: Sequence[Point]) -> list[list[Point]]:
    """Points that share caches together, the largest group first."""
    together: dict[str, list[Point]] = {}
    for point in points:
        together.setdefault(point.group, []).append(point)
    return sorted(together.values(), key=len, reverse=True)


class _Worker:
    """One process with a list of points of which the first is running."""

    def __init__(
        self,
        base: RunConfig,
        points: Sequence[Point],
        folder: Path,
        known: dict[str, Any],
        shared: Path | None,
        resume: bool,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.left = list(points)
        self.folder = folder
        self.results, sender = context.Pipe(duplex=False)
        arguments = (base, list(points), folder, known, shared, resume, sender)
        self.process: BaseProcess = context.Process(target=_work, args=arguments)
        self.begin = time.perf_counter()
        self.gone = False
        self.process.start()
        sender.close()

    def finished(self) -> list[Result]:
        """Results that have come in."""
        found: list[Result] = []
        self.gone = not self.process.is_alive()  # asked before reading: what a dead process sent is all there
        try:
            while self.results.poll():
                found.append(self.results.recv())
                self.left.pop(0)
                self.begin = time.perf_counter()
        except EOFError:
            self.process.join()
        return found

    def trouble(self, memory: int | None) -> str:
        """Why the running point will not end well; empty while all is right."""
        if not self.left:
            return ""
        if self.gone:
            return f"the worker process ended with exit code {self.process.exitcode}"
        used = _resident(self.process.pid)
        if memory is not None and used > memory:
            return f"it needed {format_bytes(used)}, more than --worker-memory {format_bytes(memory)}"
        return ""

    def give_up(self, reason: str) -> Result:
        """Stop the process; the running point is what failed."""
        from compress_cli.sweeping import Result

        self.stop()
        point = self.left.pop(0)
        return Result(point, str(self.folder / point.name), error=reason, seconds=time.perf_counter() - self.begin)

    @property
    def ended(self) -> bool:
        """Whether the process is gone, or has nothing left to do."""
        return self.gone or not self.left

    def stop(self) -> None:
        """End the process if it runs."""
        self.gone = True
        if self.process.is_alive():
            self.process.terminate()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _itself(value: Any) -> Any:
    return value


def _work(
    base: RunConfig,
    points: Sequence[Point],
    folder: Path,
    known: dict[str, Any],
    shared_folder: Path | None,
    resume: bool,
    results: Connection,
) -> None:
    """What a worker process does."""
    from compress_cli.sweeping import run_point

    shared = Shared(shared_folder)
    for name, value in known.items():
        shared.once(name, partial(_itself, value))
    for point in points:
        results.send(run_point(base, point, folder, Out(quiet=True), shared, resume=resume))


def _resident(pid: int | None) -> int:
    """Bytes of memory that a process holds; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


__all__ = ["run_in_workers"]
