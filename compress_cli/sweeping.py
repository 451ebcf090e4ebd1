"""`compress sweep`: several methods at several budgets on one original, and which results nothing else beats.

All points run in one process and share what does not depend on the budget: decoded images, the original's scores,
trace and ONNX file, spectra, importance scores. A point that fails is recorded and the others go on; a sweep that was
stopped continues with the points that are missing.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_cli.config import RunConfig
from compress_cli.console import Out, format_seconds
from compress_cli.errors import CompressError, InputError, UsageError
from compress_cli.methods import METHODS
from compress_cli.report import RunReport
from compress_cli.session import Interrupted, Shared

BUDGETS = ("sparsity", "max_params", "max_flops", "max_size")
"""Settings that a sweep may vary."""


@dataclass(frozen=True, slots=True)
class Point:
    """One run of the grid: `budget` is the setting, such as `max_flops`, `asked` its text."""

    method: str
    budget: str
    asked: str

    @property
    def name(self) -> str:
        """The run's folder inside the sweep's."""
        return f"{self.method}-{self.budget.replace('max_', '')}-{self.asked.replace('%', 'pct')}"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one point; numbers are the report's, None where it has none. `pareto`: nothing else beats it."""

    point: Point
    folder: str
    error: str = ""
    metric: float | None = None
    drop: float | None = None
    onnx_bytes: int | None = None
    params: int | None = None
    macs: int | None = None
    sparse_macs: int | None = None
    latency_ratio: float | None = None
    seconds: float = 0.0
    pareto: bool = False


def grid(methods: Sequence[str], budgets: dict[str, Sequence[str]]) -> tuple[Point, ...]:
    """Every method at every budget that it understands; magnitude takes `sparsity`, the others the rest.

    Raises:
        UsageError: an unknown method, or one without a budget.
    """
    points: list[Point] = []
    for method in methods:
        if method not in METHODS:
            raise UsageError(f"--method {method!r} is unknown", f"valid: {', '.join(METHODS)}")
        wanted = [name for name in budgets if budgets[name] and (name == "sparsity") == (method == "magnitude")]
        if not wanted:
            need = "--sparsity" if method == "magnitude" else "--max-flops or --max-params"
            raise UsageError(f"there is no budget for --method {method}", f"add {need}, for example {need} 0.5,0.7")
        points += [Point(method, name, asked) for name in wanted for asked in budgets[name]]
    return tuple(dict.fromkeys(points))


def sweep(base: RunConfig, points: Sequence[Point], folder: Path, out: Out, *, resume: bool = False) -> list[Result]:
    """Run the points one after the other in sub-folders of `folder`; writes `sweep.json` after each.

    Raises:
        UsageError: the folder holds a sweep and `resume` was not asked.
        Interrupted: stopped from outside; the finished points stay.
    """
    from compress_cli.pipeline import run

    if (folder / "sweep.json").exists() and not resume:
        raise UsageError(f"{folder} already holds a sweep", "continue it with --resume, or choose another -o DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}", "choose another -o DIR") from error
    shared = Shared(folder / ".shared")
    results: list[Result] = []
    begin = time.monotonic()
    for number, point in enumerate(points):
        left = (time.monotonic() - begin) / number * (len(points) - number) if number else 0.0
        out.info(f"[{number + 1}/{len(points)}] {point.name}{f', {format_seconds(left)} left' if number else ''}")
        place = folder / point.name
        config = dataclasses.replace(
            base, verb="sweep", method=point.method, output=str(place), **{point.budget: point.asked}
        )
        start = time.perf_counter()
        try:
            report = run(config, out, resume=resume and place.exists(), overwrite=not resume, shared=shared)
            results.append(_result(point, place, report, time.perf_counter() - start))
        except Interrupted:
            raise
        except CompressError as error:
            out.warning(f"{point.name}: {error.message}")
            results.append(Result(point, str(place), error=error.message, seconds=time.perf_counter() - start))
        _write(folder, mark_pareto(results))
    return mark_pareto(results)


def _result(point: Point, folder: Path, report: RunReport, seconds: float) -> Result:
    sizes = {artifact.role: artifact.bytes for artifact in report.artifacts}
    after = report.complexity_after or {}
    finals = [task.shipped for task in report.tasks if task.shipped is not None]
    drops = [drop for drop in (task.drop() for task in report.tasks) if drop is not None]
    return Result(
        point=point,
        folder=str(folder),
        metric=finals[0] if finals else None,
        drop=max(drops) if drops else None,
        onnx_bytes=sizes.get("onnx"),
        params=after.get("params"),
        macs=after.get("macs"),
        sparse_macs=after.get("sparse_macs"),
        latency_ratio=(report.latency or {}).get("ratio"),
        seconds=seconds,
    )


def mark_pareto(results: Sequence[Result]) -> list[Result]:
    """Mark what no other result beats: none is at least as good in drop, size, MACs and latency and better in one."""
    scored = [(_costs(result), result) for result in results]
    return [
        dataclasses.replace(result, pareto=not result.error and not any(_beats(other, mine) for other, _ in scored))
        for mine, result in scored
    ]


def _costs(result: Result) -> tuple[float | None, ...]:
    if result.error:
        return ()
    return (result.drop, result.onnx_bytes, result.macs, result.latency_ratio)


def _beats(one: tuple[float | None, ...], other: tuple[float | None, ...]) -> bool:
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a is not None and b is not None]
    return bool(pairs) and all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _write(folder: Path, results: Sequence[Result]) -> None:
    from compress_cli.atomic import atomic_path
    from compress_cli.render.html import render_sweep

    with atomic_path(folder / "sweep.json") as temporary:
        temporary.write_text(json.dumps(to_dict(results), indent=1) + "\n", encoding="utf-8")
    with atomic_path(folder / "sweep.html") as temporary:
        temporary.write_text(render_sweep(results), encoding="utf-8")


def to_dict(results: Sequence[Result]) -> dict[str, Any]:
    """The JSON document of a sweep."""
    rows = [dataclasses.asdict(result) for result in results]
    return {"schema_version": 1, "ok": not any(row["error"] for row in rows), "command": "sweep", "results": rows}
