"""`compress sweep`: several methods at several budgets on one original, and which results nothing else beats.

Points share what does not depend on the budget: decoded images, the original's scores, trace and ONNX file, spectra,
importance scores, and the first steps of combinations that begin alike. A point that fails is recorded and the others
go on; a sweep that was stopped continues with the points that are missing. Several workers: `sweep_workers`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_cli.combining import Step, combine, parse_steps
from compress_cli.config import RunConfig
from compress_cli.console import Out, format_seconds
from compress_cli.errors import CompressError, InputError, UsageError
from compress_cli.methods import METHODS
from compress_cli.quantities import LIMIT_KINDS, parse_limit
from compress_cli.report import RunReport
from compress_cli.session import Interrupted, Shared
from compress_cli.translate import pruning_errors

BUDGETS = ("sparsity", "max_params", "max_flops", "max_size")
"""Settings that a sweep may vary."""


@dataclass(frozen=True, slots=True)
class Point:
    """One run of the grid: a method at a budget, or a combination of several."""

    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """The run's folder inside the sweep's."""
        return "+".join(step.slug for step in self.steps)

    @property
    def method(self) -> str:
        """Names of the methods, joined by `+`."""
        return "+".join(step.method for step in self.steps)

    @property
    def group(self) -> str:
        """Points of one group share caches (one method) or steps (combinations that begin alike)."""
        return self.method if len(self.steps) == 1 else self.steps[0].slug


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


def grid(
    methods: Sequence[str], budgets: Mapping[str, Sequence[str]], combinations: Sequence[str] = ()
) -> tuple[Point, ...]:
    """Every method at every budget that it understands (magnitude takes `sparsity`, the others the rest), and
    combinations as `compress combine` has them: `alds:max-params=70%+magnitude:sparsity=0.8`.

    Raises:
        UsageError: an unknown method, one without a budget, or a combination that makes no sense.
    """
    points: list[Point] = []
    for method in methods:
        if method not in METHODS:
            raise UsageError(f"--method {method!r} is unknown", f"valid: {', '.join(METHODS)}")
        wanted = [name for name in budgets if budgets[name] and (name == "sparsity") == (method == "magnitude")]
        if not wanted:
            need = "--sparsity" if method == "magnitude" else "--max-flops or --max-params"
            raise UsageError(f"there is no budget for --method {method}", f"add {need}, for example {need} 0.5,0.7")
        for name in wanted:
            for asked in budgets[name]:
                _check_budget(name, asked)
        points += [Point((Step(method, ((name, asked),)),)) for name in wanted for asked in budgets[name]]
    points += [Point(parse_steps([text])) for text in combinations]
    return tuple(dict.fromkeys(points))


def _check_budget(name: str, asked: str) -> None:
    """Refuse what is no budget before anything runs."""
    if name == "sparsity":
        from pruners.magnitude import MagnitudeOptions

        with pruning_errors():
            MagnitudeOptions(asked)
        return
    flag = name.replace("_", "-")
    parse_limit(f"--{flag}", LIMIT_KINDS[flag], asked)


def sweep(
    base: RunConfig,
    points: Sequence[Point],
    folder: Path,
    out: Out,
    *,
    resume: bool = False,
    workers: int = 1,
    memory: int | None = None,
) -> list[Result]:
    """Run the points in sub-folders of `folder`; writes `sweep.json` and `sweep.html` after each.

    Args:
        workers: processes that run points at the same time, those of one method in one process.
        memory: bytes that a worker may hold; one that needs more is stopped, its point recorded as failed.

    Raises:
        UsageError: the folder holds a sweep and `resume` was not asked.
        Interrupted: stopped from outside; the finished points stay.
    """
    if (folder / "sweep.json").exists() and not resume:
        raise UsageError(f"{folder} already holds a sweep", "continue it with --resume, or choose another -o DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}", "choose another -o DIR") from error
    results: dict[Point, Result] = {}
    begin = time.monotonic()

    def done(result: Result) -> None:
        results[result.point] = result
        _write(folder, mark_pareto([results[point] for point in points if point in results]))
        passed, left = time.monotonic() - begin, len(points) - len(results)
        rest = f", {format_seconds(passed / len(results) * left)} left" if left else ""
        out.info(f"[{len(results)}/{len(points)}] {result.point.name} done{rest}")
        if result.error:
            out.warning(f"{result.point.name}: {result.error}")

    shared = Shared(folder / ".shared")
    if workers < 2 or len(points) < 2:
        for point in points:
            done(run_point(base, point, folder, out, shared, resume=resume))
    else:
        from compress_cli.sweep_workers import run_in_workers

        run_in_workers(base, points, folder, out, shared, done, resume=resume, workers=workers, memory=memory)
    for scratch in folder.glob("steps/.*"):
        shutil.rmtree(scratch, ignore_errors=True)
    return mark_pareto([results[point] for point in points])


def run_point(base: RunConfig, point: Point, folder: Path, out: Out, shared: Shared, *, resume: bool) -> Result:
    """Run one point; a failure is its result.

    Raises:
        Interrupted: stopped from outside.
    """
    place, start = folder / point.name, time.perf_counter()
    config = dataclasses.replace(base, verb="sweep")
    try:
        report = combine(
            config,
            point.steps,
            place,
            out,
            resume=resume and place.exists(),
            overwrite=not resume,
            baseline=shared,
            home=folder / "steps",
        )
        return _result(point, place, report, time.perf_counter() - start)
    except Interrupted:
        raise
    except CompressError as error:
        return Result(point, str(place), error=error.message, seconds=time.perf_counter() - start)


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
    rows = [
        {"name": result.point.name, "steps": [step.text for step in result.point.steps]}
        | {name: value for name, value in dataclasses.asdict(result).items() if name != "point"}
        for result in results
    ]
    return {"schema_version": 1, "ok": not any(row["error"] for row in rows), "command": "sweep", "results": rows}
