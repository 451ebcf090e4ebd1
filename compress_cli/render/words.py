"""What a report says, as plain rows and sentences; the terminal, Markdown and HTML only lay them out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress_cli.console import format_seconds
from compress_cli.methods import METHODS
from compress_cli.quantities import format_bytes, format_count

if TYPE_CHECKING:
    from compress_cli.report import Achieved, Gate, RunReport, TaskRow
    from compress_cli.sweeping import Result

ROUNDING = 1e-5
"""Share of the outputs' size from which a form of weights is said to change them."""
STAGE_TITLES = {
    "original": "original",
    "pruned": "compressed",
    "recovered": "recovered",
    "recalibrated": "+ BN re-est.",
    "final": "final",
    "shipped": "ONNX file",
}
"""Stages of a run in their order, as column titles."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A table: title, column names (the first one is a label, the others numbers), cells."""

    title: str
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


def title(report: RunReport) -> str:
    """`resnet50.pth: global magnitude pruning`."""
    method = METHODS[report.method][1] if report.method in METHODS else report.method
    if len(report.steps) > 1:
        method = ", then ".join(METHODS[str(step["method"])][1] for step in report.steps)
    return f"{_short(str(report.checkpoint.get('path', '')))}: {method}"


def tables(report: RunReport, layers_shown: int) -> Iterator[Rows]:
    """Every table of the report, in order; empty ones are left out."""
    yield Rows(title(report), ("", "original", "compressed", ""), tuple(_summary(report)))
    if len(report.steps) > 1:
        yield steps(report)
    if report.tasks:
        yield accuracy(report.tasks)
    if report.layers:
        yield layers(report, layers_shown)
    if report.gates:
        yield gates(report.gates)


def _summary(report: RunReport) -> Iterator[tuple[str, str, str, str]]:
    yield from (_achieved_row(achieved, report) for achieved in report.achieved)
    yield from _complexity_rows(report)
    yield from _size_rows(report)
    yield from _latency_rows(report)
    yield from _predicted_rows(report)


def _achieved_row(achieved: Achieved, report: RunReport) -> tuple[str, str, str, str]:
    """Asked against found; sparsity is hit exactly, budgets are upper limits."""
    if achieved.exact:
        before = sum(row.zeros_before for row in report.layers)
        text = f"{achieved.share:.2%}, asked {achieved.asked}: {'exact' if achieved.met else 'not exact'}"
        return "zero weights", f"{before:,}", f"{achieved.count:,}", text
    text = f"{achieved.share:.2%}, asked {achieved.asked}: {'met' if achieved.met else 'MISSED'}"
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
        if label == "ONNX file" and report.export and report.export["weights"] != "dense":
            ratio = f"{ratio}, {report.export['weights']}".lstrip(", ")
        yield (label, format_bytes(before.bytes) if before else "-", format_bytes(after.bytes), ratio)
        zipped = [format_bytes(a.gzip_bytes) if a and a.gzip_bytes is not None else "-" for a in (before, after)]
        yield (f"  {label.removesuffix(' file')} gzipped", zipped[0], zipped[1], "")


def _predicted_rows(report: RunReport) -> Iterator[tuple[str, str, str, str]]:
    for row in report.predictions:
        before = "-" if row["original_ms"] is None else f"{row['original_ms']:.2f} ms"
        error = f"predicted, typically within {row['median_error']:.0%}, 1 in 10 beyond {row['p90_error']:.0%}"
        yield (f"latency, {row['device']}", before, f"{row['compressed_ms']:.2f} ms", error)


def _latency_rows(report: RunReport) -> Iterator[tuple[str, str, str, str]]:
    if report.latency is None:
        return
    rows = {row["profile"]: row for row in report.latency["latencies"]}
    original, compressed = rows.get("original"), rows.get("compressed")
    if original is None or compressed is None:
        return
    threads = f"{compressed['threads']} thread" + ("s" if compressed["threads"] > 1 else "")
    where = f"ORT CPU, {threads}, batch {compressed['batch']}"
    yield ("latency p50", f"{original['p50_ms']:.2f} ms", f"{compressed['p50_ms']:.2f} ms", where)
    spread = f"spread {original['spread_ms']:.2f} / {compressed['spread_ms']:.2f} ms"
    yield ("latency p95", f"{original['p95_ms']:.2f} ms", f"{compressed['p95_ms']:.2f} ms", spread)


def steps(report: RunReport) -> Rows:
    """What each step of a combination left, from the original on."""
    before = report.complexity_before or {}
    tasks = [task.name for task in report.tasks]
    original = {task.name: task.scores.get("original") for task in report.tasks}
    lines = [{"step": "original", "scores": original, **before}, *report.steps]
    counts = ("params", "nonzero", "macs")
    cells = tuple(
        (
            str(line["step"]),
            *(format_count(line[name]) if line.get(name) is not None else "-" for name in counts),
            *(f"{line['scores'][task]:.2f}" if line["scores"].get(task) is not None else "-" for task in tasks),
        )
        for line in lines
    )
    return Rows("Steps", ("step", "parameters", "non-zero", "MACs", *tasks), cells)


def accuracy(tasks: tuple[TaskRow, ...]) -> Rows:
    """Each task's metric at every stage that was evaluated."""
    stages = [stage for stage in STAGE_TITLES if any(stage in task.scores for task in tasks)]
    if "final" in stages[2:] and _repeats(tasks, stages[stages.index("final") - 1]):
        stages.pop(stages.index("final") - 1)
    cells = tuple(
        (
            f"{task.name} ({task.metric}{', ' + task.unit if task.unit else ''})",
            *(f"{task.scores[stage]:.2f}" if stage in task.scores else "-" for stage in stages),
            f"{task.samples:,}",
        )
        for task in tasks
    )
    return Rows("Accuracy", ("task", *(STAGE_TITLES[stage] for stage in stages), "images"), cells)


def _repeats(tasks: tuple[TaskRow, ...], stage: str) -> bool:
    return all(task.scores.get("final") == task.scores.get(stage) for task in tasks)


def layers(report: RunReport, shown: int) -> Rows:
    """The most compressed tensors or layers."""
    ranked = sorted(report.layers, key=lambda row: row.density)
    some = ranked[:shown]
    name = f"Most compressed {len(some)} of {len(ranked)} (all in report.json)" if len(some) < len(ranked) else "Layers"
    if any(row.change for row in ranked):
        cells = tuple(
            (
                row.name,
                f"{row.weights:,}",
                f"{row.weights if row.weights_after is None else row.weights_after:,}",
                f"{row.density:.2%}",
                row.change,
            )
            for row in some
        )
        return Rows(name, ("layer", "weights", "after", "left", "now"), cells)
    cells = tuple(
        (row.name, "x".join(map(str, row.shape)), f"{row.weights:,}", f"{row.zeros_after:,}", f"{row.density:.2%}")
        for row in some
    )
    return Rows(name, ("tensor", "shape", "weights", "zeros", "density"), cells)


def gates(rows: tuple[Gate, ...]) -> Rows:
    """Limits, what was found, and the verdict; failing ones first."""
    cells = tuple(
        (gate.name, expected(gate), found(gate), verdict(gate))
        for gate in sorted(rows, key=lambda gate: gate.passed is True)
    )
    return Rows("Gates", ("gate", "expected", "found", "result"), cells)


def expected(gate: Gate) -> str:
    """The limit for people: `at most 25% = 4.20 MB`."""
    bound = "" if gate.bound is None else with_unit(gate.bound, gate.unit)
    if not bound or gate.limit.replace(" ", "").lower() == bound.replace(" ", "").lower():
        return f"at most {gate.limit}"
    return f"at most {gate.limit} = {bound}"


def found(gate: Gate) -> str:
    """The measured value for people."""
    return "not measured" if gate.value is None else with_unit(gate.value, gate.unit)


def verdict(gate: Gate) -> str:
    """One word on a gate: passed, FAILED, warning, off."""
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
    if unit == "percent":
        return f"{value:.3g} %"
    return f"{value:.2f} ms" if unit == "ms" else f"{value:.2f} points"


def comparison(reports: Sequence[RunReport]) -> Rows:
    """The main numbers of several runs, one column each."""
    measured = [
        {row[0].strip(): row[2] for row in _summary(report)}
        | {f"{task.name} ({task.metric})": f"{task.shipped:.2f}" for task in report.tasks if "final" in task.scores}
        for report in reports
    ]
    labels = list(dict.fromkeys(label for column in measured for label in column))
    cells = tuple((label, *(column.get(label, "-") for column in measured)) for label in labels)
    return Rows("Side by side", ("", *(report.folder for report in reports)), cells)


def headline(report: RunReport) -> list[str]:
    """What a reader in a hurry needs, one short sentence each: size, quality, speed."""
    by_role = {artifact.role: artifact.bytes for artifact in report.artifacts}
    lines = []
    before, after = by_role.get("original onnx"), by_role.get("onnx")
    if before and after:
        lines.append(f"ONNX file {before / after:.1f}x smaller: {format_bytes(before)} to {format_bytes(after)}.")
    for task in report.tasks:
        drop = task.drop()
        if drop is not None:
            change = f"{-drop:+.2f} points" if drop else "unchanged"
            lines.append(f"{task.name}: {task.metric} {task.shipped:.2f} ({change}, {task.samples:,} images).")
    if report.latency is not None:
        lines.append(f"Latency: {_ratio_text(report.latency)}.")
    return lines


def truth(report: RunReport) -> str:
    """What the change is worth at run time: measured, not promised."""
    if report.method == "magnitude" and len(report.steps) < 2:
        share = report.achieved[0].share if report.achieved else 0.0
        if not share:
            return ""
        measured = "" if report.latency is None else f" Measured here: {_ratio_text(report.latency)}."
        return (
            f"{share:.1%} of the ranked weights are zero. That makes files smaller, not inference faster: "
            f"ONNX Runtime, PyTorch and TensorRT compute unstructured zeros like any other number.{measured} "
            "For speed remove channels, decompose layers or quantise to int8."
        )
    if report.latency is None or report.complexity_before is None or report.complexity_after is None:
        return ""
    macs = report.complexity_after["macs"] / max(report.complexity_before["macs"], 1)
    text = f"{macs:.0%} of the MACs are left; measured here, {_ratio_text(report.latency)}."
    if report.latency["ratio"] > 0.97:
        text += " It did not get faster: what was saved in arithmetic was lost in memory traffic and smaller kernels."
    return text


def sentences(report: RunReport) -> Iterator[str]:
    """Everything that is no table: truth about speed, proofs, what was left alone, warnings, notes, time, files."""
    if words := truth(report):
        yield words
    if report.complexity_after is not None:
        yield _counting(report.complexity_after)
    if report.proof is not None and report.proof.get("summary"):
        yield f"Proof: {report.proof['summary']}."
    if report.recovery is not None and report.recovery.get("summary"):
        yield f"Recovery: {report.recovery['summary']}."
    if report.verification is not None:
        worst = max((item["max_rel"] for item in report.verification["agreements"]), default=0.0)
        count = len(report.verification["agreements"])
        rounded = _rounding(report)
        yield (
            f"ONNX Runtime equals PyTorch{' before weights are rounded' if rounded else ''}: largest relative"
            f" difference {worst:.1e} over {count} comparisons.{rounded}"
        )
    if report.skipped:
        yield f"Left alone: {_left_alone(report)} (listed with reasons in report.json)."
    yield from (f"Warning: {warning}" for warning in report.warnings)
    yield from (f"Note: {note}" for note in report.notes)
    if report.seconds:
        parts = sorted(report.seconds.items(), key=lambda item: -item[1])
        total = sum(report.seconds.values())
        yield f"Time: {format_seconds(total)} ({', '.join(f'{name} {value:.1f} s' for name, value in parts[:6])})"
    yield f"Files: {report.folder}/"
    yield f"Again: {_repeated(report.command)}"
    yield "Next:  " + shlex.join(["compress", "inspect", f"{report.folder}/model.pt"])


def _repeated(command: str) -> str:
    """The command once more: a folder that it names holds its run by then."""
    words = command.split()
    named = any(word in ("-o", "--output") or word.startswith("--output=") for word in words)
    return f"{command} --overwrite" if named and "--overwrite" not in words else command


def _rounding(report: RunReport) -> str:
    """What a form of weights that rounds does to the outputs of the written file."""
    found = (report.packing or {}).get("comparison")
    if not found or report.export is None or found["rms_rel"] < ROUNDING:
        return ""
    return f" model.onnx with {report.export['weights']}: outputs differ by {found['rms_rel']:.2%} of their size."


def _counting(complexity: Mapping[str, Any]) -> str:
    """The rule that MACs were counted by, and what it leaves out of this network."""
    uncounted = [f"{count} x {name}" for name, count in complexity.get("uncounted", ())]
    more = f" Operators without a rule: {', '.join(uncounted)}." if uncounted else ""
    return f"Counted: {complexity.get('rule', 'MACs of convolutions and matrix products')}.{more}"


def _left_alone(report: RunReport) -> str:
    reasons: dict[str, int] = {}
    for item in report.skipped:
        reasons[item.reason] = reasons.get(item.reason, 0) + 1
    parts = [f"{count} x {reason}" for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1])]
    return "; ".join(parts[:4]) + ("; ..." if len(parts) > 4 else "")


def _ratio_text(latency: Mapping[str, Any]) -> str:
    text = f"compressed takes {latency['ratio']:.2f}x the original's time"
    low, high = latency.get("ratio_low"), latency.get("ratio_high")
    if low is not None and high is not None:
        text += f" (interval {low:.2f} to {high:.2f})"
    return text if latency.get("trustworthy", True) else f"{text}, not trustworthy: {latency.get('reason', 'noisy')}"


def _short(path: str) -> str:
    return path if len(path) <= 44 else "..." + path[-41:]


def sweep(results: Sequence[Result]) -> Rows:
    """One line per point of a sweep, the best of them marked."""
    cells = tuple(_sweep_row(result) for result in results)
    return Rows("Sweep (* nothing else is better)", ("run", "metric", "drop", "ONNX", "MACs", "latency"), cells)


def _sweep_row(result: Result) -> tuple[str, ...]:
    name = ("* " if result.pareto else "  ") + result.point.name
    if result.error:
        return (f"{name}: {result.error}", *[""] * 5)
    return (
        name,
        "-" if result.metric is None else f"{result.metric:.2f}",
        "-" if result.drop is None else f"{result.drop:.2f}",
        "-" if result.onnx_bytes is None else format_bytes(result.onnx_bytes),
        "-" if result.macs is None else format_count(result.macs),
        "-" if result.latency_ratio is None else f"{result.latency_ratio:.2f}x",
    )
