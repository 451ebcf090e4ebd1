"""One or two ONNX files on several targets: measured, predicted or emulated, each labelled as what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compress_cli.console import Out
from compress_cli.errors import InputError, UsageError
from compress_cli.targets import PROVIDERS, RUNTIMES, Target, runner_for
from profilers.errors import ProfilingFailed
from profilers.onnx_cost import GraphCost, graph_cost
from profilers.runners.result import RunnerFailed, RunnerResult, Settings

NO_CHANGE = 0.05
TOP_LAYERS = 8
PROFILES = ("original", "compressed")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What all targets share."""

    threads: int = 1
    batch: int = 1
    batches: tuple[int, ...] = ()  # a sweep: every target with each of these instead of `batch`
    budget_s: float = 6.0
    iterations: int = 50
    timeout_s: float = 600.0
    binary: Path | None = None
    memory: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TargetReport:
    """One target: its rows (one per model), the ratio compressed / original, and what to think of it.

    Attributes:
        failed: why there are no rows; `log`: the target's last lines.
        layers: where the time goes, largest first (predicted targets).
    """

    target: str
    kind: str
    label: str
    rows: tuple[Mapping[str, Any], ...] = ()
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    trustworthy: bool | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    layers: tuple[Mapping[str, Any], ...] = ()
    failed: str | None = None
    log: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def bench(models: Sequence[Path], targets: Sequence[Target], options: BenchOptions, out: Out) -> dict[str, Any]:
    """Run every target on the models (the original first) and return the document that is printed.

    A target that fails is reported and the others go on.

    Raises:
        UsageError, InputError: a model cannot be read, or every target failed.
    """
    reports: list[TargetReport] = []
    for batch in reversed(options.batches or (options.batch,)):
        options = replace(options, batch=batch)
        costs = [_cost(path, batch) for path in models]
        found = []
        for target in targets:
            named = replace(target, text=f"{target.text}, batch {batch}") if options.batches else target
            out.info(f"{named.text}: {target.label}")
            found.append(_report(named, models, costs, options))
        reports = [*found, *reports]
    if all(report.failed for report in reports):
        raise InputError(f"no target delivered: {reports[0].target}: {reports[0].failed}", reports[0].log)
    from profilers.machine import describe

    return {
        "schema_version": 1,
        "ok": not any(report.failed for report in reports),
        "command": "bench",
        "models": [_facts(*facts) for facts in zip(names(models), models, costs, strict=True)],
        "targets": [asdict(report) for report in reports],
        "sentences": list(_sentences(reports, costs)),
        "machine": describe(),
    }


def names(models: Sequence[object]) -> tuple[str, ...]:
    """Profile names of one or two models."""
    return PROFILES[-len(models) :]


def _cost(path: Path, batch: int) -> GraphCost:
    if not path.is_file():
        raise InputError(f"{path} is not there", "pass an ONNX file, for example RUN/model.onnx")
    try:
        return graph_cost(path, batch=batch)
    except ProfilingFailed as error:
        raise InputError(
            f"{path} cannot be measured: {error}", "export it again with fixed sizes but for the batch"
        ) from error


def _facts(profile: str, path: Path, cost: GraphCost) -> dict[str, Any]:
    from profilers.size import file_size

    size = file_size(path, gzip=False)
    facts = {"profile": profile, "path": str(path), "bytes": size.bytes, "params": cost.params}
    return {**facts, "macs": cost.macs, "flops": 2 * cost.macs, "traffic": cost.traffic, "batch": cost.batch}


def _report(target: Target, models: Sequence[Path], costs: Sequence[GraphCost], options: BenchOptions) -> TargetReport:
    try:
        if target.kind in PROVIDERS:
            return _measured(target, models, options)
        if target.kind == "mobile":
            return _predicted(target, costs, options)
        if target.kind in RUNTIMES:
            return _mobile_runtime(target, models, options)
        return _elsewhere(target, models, options)
    except RunnerFailed as error:
        return TargetReport(target.text, target.kind, target.label, failed=error.reason, log=error.log)
    except ProfilingFailed as error:
        return TargetReport(target.text, target.kind, target.label, failed=error.reason)


def _measured(target: Target, models: Sequence[Path], options: BenchOptions) -> TargetReport:
    from profilers.latency import compare

    original = models[0] if len(models) == 2 else None
    found = compare(
        original,
        models[-1],
        threads=options.threads,
        provider=PROVIDERS[target.kind],
        batch=options.batch,
        budget_s=options.budget_s,
        seed=options.seed,
    )
    document = found.to_dict()
    rows = document.pop("latencies")
    if options.memory and target.kind == "cloud-cpu":
        for row, fresh in zip(rows, _fresh(models, options), strict=True):
            row.update(load_ms=fresh.load_ms, peak_rss_mb=fresh.peak_rss_mb)
        for row, path in zip(rows, models, strict=True):
            row["joules"] = _joules(path, options)
    return TargetReport(
        target.text,
        target.kind,
        target.label,
        rows=tuple(rows),
        ratio=found.ratio,
        ratio_low=found.ratio_low,
        ratio_high=found.ratio_high,
        trustworthy=found.trustworthy,
        reason=found.reason,
        details={key: document[key] for key in ("blocks", "seconds", "contention")},
    )


def _joules(path: Path, options: BenchOptions) -> float | None:
    """Energy of one inference, where the processor counts it."""
    from profilers.energy import counters, joules_per_run
    from profilers.ort import make_inputs, open_session

    if not counters():
        return None
    session = open_session(path, options.threads)
    feed = make_inputs(session, options.batch, options.seed)
    return joules_per_run(lambda: session.run(None, feed))


def _fresh(models: Sequence[Path], options: BenchOptions) -> list[RunnerResult]:
    """Cold load time and peak memory, each model in processes of its own, in turn."""
    from profilers.runners.ort_process import LocalRunner
    from profilers.runners.result import merge

    settings = Settings(options.threads, iterations=1, warmup=0, batch=options.batch, timeout_s=options.timeout_s)
    found: list[list[RunnerResult]] = [[] for _ in models]
    for _ in range(2):
        for results, path in zip(found, models, strict=True):
            results += LocalRunner().measure([path], settings)
    return [merge(results) for results in found]


def _predicted(target: Target, costs: Sequence[GraphCost], options: BenchOptions) -> TargetReport:
    from profilers.devices.catalog import UnknownDevice, find
    from profilers.devices.predict import predict, ratio_error

    try:
        device = find(target.argument, None if options.threads == 1 else options.threads)
    except UnknownDevice as error:
        close = f"closest: {', '.join(error.close)}" if error.close else "compress devices lists them"
        raise UsageError(f"--target {target.text}: {error}", close) from error
    found = [predict(cost, device) for cost in costs]
    rows = []
    for profile, one in zip(names(found), found, strict=True):
        row = {"profile": profile, "provider": "predicted", "threads": one.threads, "batch": options.batch}
        rows.append({**row, "p50_ms": one.ms, "low_ms": one.low_ms, "high_ms": one.high_ms, "shares": one.shares})
    notes = [found[-1].sentence(), *found[-1].caveats]
    if len(found) == 2:
        median, p90 = ratio_error()
        notes.append(f"ratios of two networks of one family were off by {median:.0%} (median), {p90:.0%} (one in ten)")
    layers = sorted(found[-1].by_layer, key=lambda layer: -layer.ms)[:TOP_LAYERS]
    return TargetReport(
        target.text,
        target.kind,
        f"predicted for {device.title}",
        rows=tuple(rows),
        ratio=found[1].ms / found[0].ms if len(found) == 2 else None,
        notes=tuple(notes),
        layers=tuple(asdict(layer) for layer in layers),
    )


def _mobile_runtime(target: Target, models: Sequence[Path], options: BenchOptions) -> TargetReport:
    from profilers.mobile.registry import compare_mobile

    if options.batch != 1:
        raise ProfilingFailed("mobile runtimes are measured with batch 1")
    found = compare_mobile(target.kind, models, threads=options.threads, budget_s=options.budget_s)
    document = found.to_dict()
    return TargetReport(
        target.text,
        target.kind,
        f"{found.latencies[0].provider} {target.label}",
        rows=tuple(document["latencies"]),
        ratio=found.ratio,
        ratio_low=found.ratio_low,
        ratio_high=found.ratio_high,
        trustworthy=found.trustworthy,
        reason=found.reason,
    )


def _elsewhere(target: Target, models: Sequence[Path], options: BenchOptions) -> TargetReport:
    runner = runner_for(target, binary=options.binary)
    settings = Settings(options.threads, options.iterations, batch=options.batch, timeout_s=options.timeout_s)
    found = runner.measure(models, settings)
    rows = [
        {"profile": profile, "batch": options.batch, **_row(result)}
        for profile, result in zip(names(found), found, strict=True)
    ]
    best = [result.best_ms or result.instructions for result in found]
    ratio = best[1] / best[0] if len(best) == 2 and best[0] and best[1] else None
    return TargetReport(target.text, target.kind, runner.label, rows=tuple(rows), ratio=ratio)


def _row(result: RunnerResult) -> dict[str, Any]:
    row = result.to_dict()
    row["p50_ms"], row["provider"] = row.pop("median_ms"), row.pop("runtime")
    return row


def _sentences(reports: Sequence[TargetReport], costs: Sequence[GraphCost]) -> list[str]:
    """What the ratios mean, and why nothing got faster where nothing did."""
    found = []
    for report in reports:
        if report.ratio is None or report.kind == "qemu":
            continue
        low, high = report.ratio_low or report.ratio, report.ratio_high or report.ratio
        if high < 1 - NO_CHANGE:
            text = f"{1 / report.ratio:.2f}x faster"
        elif low > 1 + NO_CHANGE:
            text = f"{report.ratio:.2f}x slower"
        else:
            text = "no change in speed"
        doubt = " (not trustworthy: measure again)" if report.trustworthy is False else ""
        found.append(f"{report.target} ({report.label}): {text}{doubt}{_why_not(report.ratio, costs)}")
    return found


def _why_not(ratio: float, costs: Sequence[GraphCost]) -> str:
    if ratio < 1 - NO_CHANGE or not costs[0].macs:
        share = costs[1].macs / costs[0].macs if costs[0].macs else 1.0
        return "" if ratio <= share + 0.15 else f"; the MACs fell to {share:.0%}, memory traffic and overhead did not"
    share = costs[1].macs / costs[0].macs
    if share > 0.98:
        return "; both files compute the same MACs: zeros make files smaller, runtimes compute them like other numbers"
    return f"; the MACs fell to {share:.0%}, but not what takes the time (memory traffic, number of layers, odd widths)"
