"""Latency of one or two ONNX files in ONNX Runtime, interleaved in one process, and whether it can be trusted.

Both sessions are built first. After a warm-up the runs alternate in blocks A B B A (A = original, B = compressed), so
that clock, heat and background load meet both alike; a block repeats this until each model had `RUNS_PER_BLOCK` runs
(more for models below 2 ms). Percentiles are over all runs; the ratio is a median over blocks with a bootstrap
interval (`profilers.statistics`). The verdict looks at the interval, the drift, and what else used the processors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from profilers.contention import Contention, ContentionMeter
from profilers.machine import describe
from profilers.ort import CPU, Array, feed_for, make_inputs, open_session, with_batch
from profilers.statistics import Ratio, Times, as_json, block_ratio, drift, summarize

RUNS_PER_BLOCK = 4
SLOT_SECONDS = 0.004
MIN_BLOCKS, MAX_BLOCKS = 5, 100
WARM_UP_RUNS, WARM_UP_SECONDS = 3, 1.0

MAX_INTERVAL = 0.10
MAX_DRIFT = 0.10
MAX_OTHERS = 0.25  # of all cores
MAX_WAITING = 0.10
MAX_STOLEN = 0.05  # of all cores
MIN_RUNS = 10


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds per inference; `spread_ms` = 90th - 10th percentile, `first_ms` = the very first run."""

    profile: str
    provider: str
    threads: int
    batch: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    spread_ms: float
    runs: int
    load_ms: float
    first_ms: float

    @property
    def per_second(self) -> float:
        """Samples per second at the median."""
        return 1000 * self.batch / self.p50_ms


@dataclass(frozen=True, slots=True)
class Comparison:
    """Latencies of one or two files, and compressed / original.

    Attributes:
        ratio: below 1 = compressed is faster; None with a single file. `ratio_low`, `ratio_high`: 95 % interval.
        trustworthy: whether a second measurement would agree; `reason` says what disturbed, or that nothing did.
        contention: what else used the processors.
    """

    latencies: tuple[Latency, ...]
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    trustworthy: bool
    reason: str
    blocks: int
    seconds: float
    contention: Contention
    machine: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them, with `per_second` in every latency."""
        document = asdict(self)
        for row, latency in zip(document["latencies"], self.latencies, strict=True):
            row["per_second"] = latency.per_second
        return document


@dataclass(frozen=True, slots=True)
class Timed:
    """Something to time: `run` is one inference that ends when its result is there.

    Attributes:
        clock: runs one inference and returns its seconds, where the device has a clock of its own (GPU events).
    """

    profile: str
    run: Callable[[], object]
    load_ms: float = 0.0
    first_ms: float = 0.0
    clock: Callable[[], float] | None = None

    def seconds(self) -> float:
        """One inference, timed."""
        return _seconds(self.run) if self.clock is None else self.clock()


def compare(
    original: Path | None,
    compressed: Path,
    *,
    inputs: Mapping[str, Array] | None = None,
    threads: int = 1,
    provider: str = CPU,
    batch: int | None = None,
    budget_s: float = 6.0,
    seed: int = 0,
) -> Comparison:
    """Time both files (or only `compressed`) on the same inputs.

    Args:
        original: the uncompressed model; None to time one file alone.
        compressed: the other one.
        inputs: by name; default: seeded normal tensors of the shapes that the file declares.
        threads: of ONNX Runtime inside an operator.
        provider: an execution provider that is installed.
        batch: samples per inference; default: the inputs' own, or 1.
        budget_s: time for warm-up and runs of both together; loading and the least number of runs come on top.
        seed: of inputs and bootstrap.

    Raises:
        MeasurementFailed: a file cannot be loaded or run, or the provider is not there.
    """
    sides = [("compressed", compressed)] if original is None else [("original", original), ("compressed", compressed)]
    timed: list[Timed] = []
    for profile, path in sides:
        begin = time.perf_counter()
        session = open_session(Path(path), threads, provider)
        load_ms = (time.perf_counter() - begin) * 1e3
        if inputs is None:
            inputs = make_inputs(session, batch or 1, seed)
        inputs = with_batch(inputs, batch) if batch else inputs
        begin = time.perf_counter()
        feed = feed_for(session, inputs, Path(path))
        first_ms = (time.perf_counter() - begin) * 1e3
        timed.append(Timed(profile, partial(session.run, None, feed), load_ms, first_ms))
    first = next(iter((inputs or {}).values()))
    size = int(first.shape[0]) if first.ndim else 1
    return compare_runs(timed, provider=provider, threads=threads, batch=size, budget_s=budget_s, seed=seed)


def compare_runs(
    timed: Sequence[Timed], *, provider: str, threads: int, batch: int, budget_s: float = 6.0, seed: int = 0
) -> Comparison:
    """Time one or two callables in interleaved blocks; the core of `compare`, for other runtimes too.

    Args:
        timed: the original first; a single one is taken as the compressed model.
        provider, threads, batch: recorded as they are.
    """
    begin = time.perf_counter()
    slowest = max(_warm_up(one, budget_s / 4 / len(timed)) for one in timed)
    repeats = max(1, round(SLOT_SECONDS / max(slowest, 1e-7)))
    meter = ContentionMeter()
    blocks = _blocks(timed, repeats, budget_s - (time.perf_counter() - begin))
    contention = meter.stop(threads)
    pairs = list(zip(timed, blocks, strict=True))
    latencies = tuple(_latency(one, times, provider, threads, batch) for one, times in pairs)
    ratio = block_ratio(blocks[0], blocks[1], seed) if len(timed) == 2 else None
    troubles = list(_troubles(blocks, ratio, contention))
    return Comparison(
        latencies=latencies,
        ratio=ratio.value if ratio else None,
        ratio_low=ratio.low if ratio else None,
        ratio_high=ratio.high if ratio else None,
        trustworthy=not troubles,
        reason="; ".join(troubles) or "the blocks agree and nothing else used the processors much",
        blocks=len(blocks[0]),
        seconds=time.perf_counter() - begin,
        contention=contention,
        machine=describe(),
    )


def _warm_up(one: Timed, seconds: float) -> float:
    """Run at least three times and until two medians of five agree within 5 %; the fastest run in seconds."""
    times: list[float] = []
    limit = time.perf_counter() + min(seconds, WARM_UP_SECONDS)
    while len(times) < WARM_UP_RUNS or (time.perf_counter() < limit and not _settled(times)):
        times.append(one.seconds())
    return min(times)


def _settled(times: Sequence[float]) -> bool:
    if len(times) < 10:
        return False
    before, after = float(np.median(times[-10:-5])), float(np.median(times[-5:]))
    return abs(after - before) < 0.05 * before


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _blocks(timed: Sequence[Timed], repeats: int, seconds: float) -> list[Times]:
    """Milliseconds per run, one array (blocks, runs) per model.

    Args:
        repeats: runs in a row before the other model's turn.
        seconds: stop after the block that ends behind this; at least `MIN_BLOCKS` blocks.
    """
    end = time.perf_counter() + seconds
    order = [*range(len(timed)), *reversed(range(len(timed)))]  # A B B A
    rounds = max(1, RUNS_PER_BLOCK // (2 * repeats))
    found: list[list[list[float]]] = [[] for _ in timed]
    while len(found[0]) < MIN_BLOCKS or (time.perf_counter() < end and len(found[0]) < MAX_BLOCKS):
        block: list[list[float]] = [[] for _ in timed]
        for index in order * rounds:
            block[index] += [timed[index].seconds() * 1e3 for _ in range(repeats)]
        for index, times in enumerate(block):
            found[index].append(times)
    return [np.asarray(times) for times in found]


def _latency(one: Timed, times: Times, provider: str, threads: int, batch: int) -> Latency:
    return Latency(
        profile=one.profile,
        provider=provider,
        threads=threads,
        batch=batch,
        runs=times.size,
        load_ms=one.load_ms,
        first_ms=one.first_ms,
        **as_json(summarize(times.ravel())),
    )


def _troubles(blocks: Sequence[Times], ratio: Ratio | None, contention: Contention) -> list[str]:
    """What speaks against the figures, each with its number."""
    found = []
    if blocks[0].size < MIN_RUNS:
        found.append(f"only {blocks[0].size} runs of each model")
    if ratio is not None and ratio.width > MAX_INTERVAL:
        found.append(f"the ratio is only known within {ratio.low:.2f} to {ratio.high:.2f}")
    worst = max((drift(times) for times in blocks), key=abs)
    if abs(worst) > MAX_DRIFT:
        found.append(f"the second half was {abs(worst):.0%} {'slower' if worst > 0 else 'faster'} than the first")
    return found + _disturbances(contention)


def _disturbances(contention: Contention) -> list[str]:
    found = []
    others, waiting, stolen, cores = contention.others, contention.waiting, contention.stolen, contention.cores
    if others is not None and others > MAX_OTHERS * cores:
        found.append(f"other processes kept {others:.1f} of {cores} cores busy")
    if waiting is not None and waiting > MAX_WAITING:
        found.append(f"the process waited for a core {waiting:.0%} of the time")
    if stolen is not None and stolen > MAX_STOLEN * cores:
        found.append(f"the host took {stolen:.1f} cores away")
    return found
