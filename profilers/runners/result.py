"""What a runner reports: one JSON line per model, checked; what it leaves out stays unknown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from profilers.errors import ProfilingFailed


class RunnerFailed(ProfilingFailed):
    """A target did not deliver: a command failed, timed out or printed no usable line.

    Attributes:
        log: the last lines that the target printed.
    """

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.log = log


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run: `iterations` timed runs after `warmup` others, with `threads` threads, `batch` samples each."""

    threads: int = 1
    iterations: int = 50
    warmup: int = 5
    batch: int = 1
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class RunnerResult:
    """Milliseconds per inference of one model on one target; None = the target did not say.

    Attributes:
        instructions: per inference, where the target counts them instead of time.
        extra: whatever else the line held.
    """

    model: str
    device: str
    threads: int
    runtime: str | None = None
    min_ms: float | None = None
    median_ms: float | None = None
    p90_ms: float | None = None
    load_ms: float | None = None
    peak_rss_mb: float | None = None
    iterations: int | None = None
    instructions: int | None = None
    extra: Mapping[str, Any] | None = None

    @property
    def best_ms(self) -> float | None:
        """The minimum, or the median where there is no minimum."""
        return self.min_ms if self.min_ms is not None else self.median_ms

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return asdict(self)


class Runner(Protocol):
    """A target that can run models."""

    @property
    def name(self) -> str:
        """As `--target` has it."""
        ...

    @property
    def label(self) -> str:
        """For people: where it runs."""
        ...

    def measure(self, models: Sequence[Path], settings: Settings) -> tuple[RunnerResult, ...]:
        """Run all `models` interleaved in one call, one result each in their order.

        Raises:
            RunnerFailed: the target did not deliver.
        """
        ...


_NUMBERS = ("min_ms", "median_ms", "p90_ms", "load_ms", "peak_rss_mb")


def parse_line(text: str, model: str) -> RunnerResult:
    """The last line of `text` that is a JSON object, as the result of `model`; other lines are log.

    Raises:
        RunnerFailed: there is none, or `device`, `threads` and one of `min_ms`, `median_ms` and `instructions` are not
            all there, or a number is none.
    """
    found = last_object(text)
    if found is None:
        raise RunnerFailed("it printed no JSON line", tail(text))
    values = dict(found)
    try:
        device, threads = str(values.pop("device")), int(values.pop("threads"))
    except (KeyError, TypeError, ValueError):
        raise RunnerFailed("its JSON line lacks `device` or `threads`", tail(text)) from None
    numbers = {name: _number(values.pop(name, None), name, text) for name in _NUMBERS}
    counts = {name: _number(values.pop(name, None), name, text) for name in ("iterations", "instructions")}
    if numbers["min_ms"] is None and numbers["median_ms"] is None and counts["instructions"] is None:
        raise RunnerFailed("its JSON line has neither `min_ms` nor `median_ms`", tail(text))
    runtime = values.pop("runtime", None)
    return RunnerResult(
        model=model,
        device=device,
        threads=threads,
        runtime=None if runtime is None else str(runtime),
        **numbers,
        iterations=None if counts["iterations"] is None else int(counts["iterations"]),
        instructions=None if counts["instructions"] is None else int(counts["instructions"]),
        extra=values or None,
    )


def last_object(text: str) -> dict[str, Any] | None:
    """The last line that parses as a JSON object."""
    for line in reversed(text.splitlines()):
        if line.strip().startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    return None


def tail(text: str, lines: int = 8) -> str:
    """The last lines of a log."""
    return "\n".join(text.strip().splitlines()[-lines:])


def _number(value: Any, name: str, text: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise RunnerFailed(f"`{name}` in its JSON line is no positive number: {value!r}", tail(text))
    return float(value)


def merge(results: Sequence[RunnerResult]) -> RunnerResult:
    """Several runs of one model as one: the smallest minimum, the median of medians, the largest p90 and memory."""
    from statistics import median

    def of(name: str) -> list[float]:
        return [value for one in results if (value := getattr(one, name)) is not None]

    first = results[0]
    return RunnerResult(
        model=first.model,
        device=first.device,
        threads=first.threads,
        runtime=first.runtime,
        min_ms=min(of("min_ms"), default=None),
        median_ms=median(of("median_ms")) if of("median_ms") else None,
        p90_ms=max(of("p90_ms"), default=None),
        load_ms=min(of("load_ms"), default=None),
        peak_rss_mb=max(of("peak_rss_mb"), default=None),
        iterations=int(sum(of("iterations"))) if of("iterations") else None,
        instructions=int(median(of("instructions"))) if of("instructions") else None,
        extra=first.extra,
    )
