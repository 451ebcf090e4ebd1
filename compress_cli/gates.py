"""Gates: limits from `--max-*` flags against what the report measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from compress_cli.quantities import Limit
from compress_cli.report import Gate, RunReport


def with_gates(report: RunReport, limits: Iterable[Limit]) -> RunReport:
    """The same report with one gate per limit."""
    return dataclasses.replace(report, gates=tuple(_judge(report, limit) for limit in limits))


def _judge(report: RunReport, limit: Limit) -> Gate:
    original, value = _MEASURED[limit.name](report)
    bound = limit.bound(original)
    passed = None if value is None or bound is None else value <= bound
    # a limit that could not be checked must not look like a pass
    level = "error"
    return Gate(limit.name.removeprefix("--"), level, limit.text, value, bound, limit.kind, bool(passed))


def _size(report: RunReport) -> tuple[float | None, float | None]:
    by_role = {artifact.role: float(artifact.bytes) for artifact in report.artifacts}
    return by_role.get("original onnx"), by_role.get("onnx")


def _drop(report: RunReport) -> tuple[float | None, float | None]:
    drops = [drop for drop in (task.drop() for task in report.tasks) if drop is not None]
    return None, max(drops) if drops else None


def _latency(report: RunReport) -> tuple[float | None, float | None]:
    rows = {row["profile"]: row["p50_ms"] for row in (report.latency or {}).get("latencies", ())}
    return rows.get("original"), rows.get("compressed")


def _counted(name: str) -> Callable[[RunReport], tuple[float | None, float | None]]:
    """A quantity of the two traces (profilers.complexity)."""

    def measured(report: RunReport) -> tuple[float | None, float | None]:
        before, after = report.complexity_before, report.complexity_after
        return (None if before is None else before[name], None if after is None else after[name])

    return measured


_MEASURED = {
    "--max-params": _counted("params"),
    "--max-flops": _counted("macs"),
    "--max-size": _size,
    "--max-drop": _drop,
    "--max-latency": _latency,
}
