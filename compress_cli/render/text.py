"""A `RunReport` as tables for a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from compress_cli.console import format_seconds
from compress_cli.methods import METHODS
from compress_cli.quantities import format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import Console

    from compress_cli.report import Achieved, Gate, RunReport, TaskRow

LAYERS_SHOWN = 6


def render_report(report: RunReport, console: Console) -> None:
    """Print the whole report: summary, accuracy, layers, what was left alone, truth about speed, files."""
    console.print(_summary(report))
    if report.tasks:
        console.print(_accuracy(report.tasks))
    if report.layers:
        console.print(_layers(report))
    for table in filter(None, [_gates(report.gates)]):
        console.print(table)
    for line in _sentences(report):
        console.print(line, markup=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _summary(report: RunReport) -> Table:
    method = METHODS[report.method][1] if report.method in METHODS else report.method
    table = _table(
        f"{escape(_short(str(report.checkpoint.get('path', ''))))}: {method}", "", "original", "compressed", ""
    )
    for achieved in report.achieved:
        table.add_row(*_achieved_row(achieved, report))
    for row in _complexity_rows(report):
        table.add_row(*row)
    for row in _size_rows(report):
        table.add_row(*row)
    for row in _latency_rows(report):
        table.add_row(*row)
    return table


def _achieved_row(achieved: Achieved, report: RunReport) -> tuple[str, str, str, str]:
    """Asked against found; sparsity is hit exactly, budgets are upper limits."""
    if achieved.exact:
        before = sum(row.zeros_before for row in report.layers)
        verdict = "exact" if achieved.met else "not exact"
        text = f"{achieved.share:.2%}, asked {achieved.asked}: {verdict}"
        return "zero weights", f"{before:,}", f"{achieved.count:,}", text
    verdict = "met" if achieved.met else "MISSED"
    text = f"{achieved.share:.2%}, asked {achieved.asked}: {verdict}"
    return f"budget: {achieved.name}", f"{achieved.out_of:,}", f"{achieved.count:,}", text


def _complexity_rows(report: RunReport) -> Iterator[tuple[str, str, str, str]]:
    before, after = report.complexity_before, report.complexity_after
    if before is None or after is None:
        return
    yield ("parameters", format_count(before["params"]), format_count(after["params"]), "stored shapes")
    yield ("  of them non-zero", format_count(before["nonzero"]), format_count(after["nonzero"]), "")
    yield ("MACs, dense", format_count(before["macs"]), format_count(after["macs"]), f"batch {before.get('batch', 1)}")
    skipped = "theoretical"
    yield ("MACs, zeros skipped", format_count(before["sparse_macs"]), format_count(after["sparse_macs"]), skipped)
    yield ("FLOPs = 2 x MACs", format_count(2 * before["macs"]), format_count(2 * after["macs"]), "")


def _size_rows(report: RunReport) -> Iterator[tuple[str, str, str, str]]:
    by_role = {artifact.role: artifact for artifact in report.artifacts}
    pairs = (("checkpoint", "original checkpoint", "checkpoint"), ("ONNX file", "original onnx", "onnx"))
    for label, original, compressed in pairs:
        before, after = by_role.get(original), by_role.get(compressed)
        if after is None:
            continue
        ratio = f"{before.bytes / after.bytes:.1f}x smaller" if before and after.bytes < 0.95 * before.bytes else ""
        if label == "ONNX file" and report.packing:
            ratio = f"{ratio}, weights packed".lstrip(", ")
        yield (label, format_bytes(before.bytes) if before else "-", format_bytes(after.bytes), ratio)
        zipped = [format_bytes(a.gzip_bytes) if a and a.gzip_bytes is not None else "-" for a in (before, after)]
        yield ("  gzipped", zipped[0], zipped[1], "")


def _latency_rows(report: RunReport) -> Iterator[tuple[str, str, str, str]]:
    if report.latency is None:
        return
    rows = {row["profile"]: row for row in report.latency["latencies"]}
    original, compressed = rows.get("original"), rows.get("compressed")
    if original is None or compressed is None:
        return
    where = f"ORT CPU, {compressed['threads']} thread(s), batch {compressed['batch']}"
    yield ("latency p50", f"{original['p50_ms']:.2f} ms", f"{compressed['p50_ms']:.2f} ms", where)
    spread = f"spread {original['spread_ms']:.2f} / {compressed['spread_ms']:.2f} ms"
    yield ("latency p95", f"{original['p95_ms']:.2f} ms", f"{compressed['p95_ms']:.2f} ms", spread)


def _accuracy(tasks: tuple[TaskRow, ...]) -> Table:
    stages = [stage for stage in STAGE_TITLES if any(stage in task.scores for task in tasks)]
    stages = [stage for stage in stages if not (stage == "final" and len(stages) > 2 and _final_repeats(tasks, stages))]
    table = _table("Accuracy", "task", *[STAGE_TITLES[stage] for stage in stages], "images")
    for task in tasks:
        scores = [f"{task.scores[stage]:.2f}" if stage in task.scores else "-" for stage in stages]
        table.add_row(escape(f"{task.name} ({task.metric})"), *scores, f"{task.samples:,}")
    return table


STAGE_TITLES = {
    "original": "original",
    "pruned": "after pruning",
    "recovered": "recovered",
    "recalibrated": "+ BN re-est.",
    "final": "final",
}


def _final_repeats(tasks: tuple[TaskRow, ...], stages: list[str]) -> bool:
    last = stages[stages.index("final") - 1]
    return all(task.scores.get("final") == task.scores.get(last) for task in tasks)


def _layers(report: RunReport) -> Table:
    ranked = sorted(report.layers, key=lambda row: row.density)
    shown = ranked[:LAYERS_SHOWN]
    title = f"Most compressed {len(shown)} of {len(ranked)} tensors (all in report.json)"
    if any(row.change for row in shown):
        table = _table(title, "layer", "weights", "after", "left", "now")
        for row in shown:
            after = row.weights if row.weights_after is None else row.weights_after
            table.add_row(escape(row.name), f"{row.weights:,}", f"{after:,}", f"{row.density:.2%}", escape(row.change))
        return table
    table = _table(title, "tensor", "shape", "weights", "zeros", "density")
    for row in shown:
        shape = "x".join(map(str, row.shape))
        table.add_row(escape(row.name), shape, f"{row.weights:,}", f"{row.zeros_after:,}", f"{row.density:.2%}")
    return table


def _gates(gates: tuple[Gate, ...]) -> Table | None:
    if not gates:
        return None
    table = _table("Gates", "gate", "limit", "found", "result")
    for gate in sorted(gates, key=lambda item: item.passed is True):
        found = "not measured" if gate.value is None else with_unit(gate.value, gate.unit)
        limit = escape(gate.limit) + ("" if gate.bound is None else f" = {with_unit(gate.bound, gate.unit)}")
        table.add_row(gate.name, limit, found, verdict(gate))
    return table


def verdict(gate: Gate) -> str:
    """One word on a gate: passed, FAILED, not checked, warning, off."""
    if gate.level == "off":
        return "off"
    if gate.passed is True:
        return "passed"
    if gate.level == "warn":
        return "warning"
    return "FAILED" if gate.passed is False else "FAILED (not checked)"


def with_unit(value: float, unit: str) -> str:
    """A gate's number for people."""
    if unit == "bytes":
        return format_bytes(value)
    if unit in ("params", "macs"):
        return format_count(value) + (" MACs" if unit == "macs" else "")
    return f"{value:.2f} ms" if unit == "ms" else f"{value:.2f} points"


def _sentences(report: RunReport) -> Iterator[str]:
    yield ""
    yield from _truth(report)
    if report.verification is not None:
        worst = max((item["max_rel"] for item in report.verification["agreements"]), default=0.0)
        count = len(report.verification["agreements"])
        yield f"ONNX Runtime equals PyTorch: largest relative difference {worst:.1e} over {count} comparisons."
    if report.skipped:
        yield f"Left alone: {_left_alone(report)} (listed with reasons in report.json)."
    for warning in report.warnings:
        yield f"Warning: {warning}"
    for note in report.notes:
        yield f"Note: {note}"
    if report.seconds:
        parts = sorted(report.seconds.items(), key=lambda item: -item[1])
        total = sum(report.seconds.values())
        yield f"Time: {format_seconds(total)} ({', '.join(f'{name} {value:.1f} s' for name, value in parts[:6])})"
    yield f"Files: {report.folder}/"
    yield f"Again: {report.command}"
    yield f"Next:  compress inspect {report.folder}/model.pt"


def _left_alone(report: RunReport) -> str:
    reasons: dict[str, int] = {}
    for item in report.skipped:
        reasons[item.reason] = reasons.get(item.reason, 0) + 1
    parts = [f"{count} x {reason}" for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1])]
    return "; ".join(parts[:4]) + ("; ..." if len(parts) > 4 else "")


def _truth(report: RunReport) -> Iterator[str]:
    """What the zeros are worth at run time: files get smaller, mainstream runtimes do not get faster."""
    if report.method != "magnitude":
        return
    share = report.achieved[0].share if report.achieved else 0.0
    measured = ""
    if report.latency is not None:
        measured = f" Measured here: {_ratio_text(report.latency)}."
    yield (
        f"{share:.1%} of the ranked weights are zero. That makes files smaller, not inference faster: ONNX Runtime, "
        f"PyTorch and TensorRT compute unstructured zeros like any other number.{measured} "
        "For speed remove channels, decompose layers or quantise to int8."
    )


def _ratio_text(latency: Mapping[str, Any]) -> str:
    text = f"compressed takes {latency['ratio']:.2f}x the original's time"
    low, high = latency.get("ratio_low"), latency.get("ratio_high")
    if low is not None and high is not None:
        text += f" (interval {low:.2f} to {high:.2f})"
    return text if latency.get("trustworthy", True) else f"{text}, not trustworthy: {latency.get('reason', 'noisy')}"


def _short(path: str) -> str:
    return path if len(path) <= 44 else "..." + path[-41:]
