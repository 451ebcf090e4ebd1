"""`compress bench`: latency of one or two ONNX files on this machine, on devices, or predicted for named phones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress_cli import options as o
from compress_cli.completion import targets
from compress_cli.console import Out
from compress_cli.errors import UsageError
from compress_cli.quantities import format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = """Examples:

compress bench original.onnx runs/net/model.onnx

compress bench a.onnx b.onnx --target cloud-cpu,mobile:raspberry-pi-5,mobile:snapdragon-8-gen-2 --threads 4

compress bench model.onnx --target cloud-cpu --batch 1,8,32

compress bench model.onnx --target ssh:pi@board.local --batch 8 --json"""

Model = Annotated[Path, typer.Argument(help="ONNX file; the original when a second is given.", show_default=False)]
Second = Annotated[Path | None, typer.Argument(help="The compressed ONNX file.", show_default=False)]
TargetOption = Annotated[
    list[str] | None,
    o.option(
        "--target",
        help="cloud-cpu, cloud-gpu, tensorrt, openvino, coreml, qnn, mobile:DEVICE, ncnn, mnn, litert, executorch, "
        "ssh:HOST, adb:SERIAL, qemu:FOLDER; commas or repeated.",
        metavar="TARGET",
        complete=targets,
    ),
]
Batch = Annotated[str, o.option("--batch", help="Samples per inference, or several to sweep: 1,8,32. Default 1.")]
Budget = Annotated[float, o.option("--budget", help="Seconds of measuring per target on this machine. Default 6.")]
Iterations = Annotated[int, o.option("--iterations", help="Timed runs on other machines. Default 50.")]
Binary = Annotated[Path | None, o.option("--binary", help="Benchmark program for adb targets, built for the phone.")]
Timeout = Annotated[float, o.option("--timeout", help="Seconds a target may take. Default 600.")]
NoMemory = Annotated[bool, o.option("--no-memory", help="Skip cold load time and peak memory (fresh processes).")]
ThreadCount = Annotated[int, o.option("--threads", help="Threads inside an operator. Default 1.")]
SeedNumber = Annotated[int, o.option("--seed", help="Seed of the random input. Default 0.")]


def bench(
    model: Model,
    compressed: Second = None,
    target: TargetOption = None,
    threads: ThreadCount = 1,
    batch: Batch = "1",
    budget: Budget = 6.0,
    iterations: Iterations = 50,
    binary: Binary = None,
    timeout: Timeout = 600.0,
    no_memory: NoMemory = False,
    seed: SeedNumber = 0,
    config: o.ConfigFile = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Measure latency honestly: both files interleaved in one process, with a verdict on the measurement.

    Numbers are labelled measured on this host, measured on a device, predicted (with the error) or emulated.
    """
    from compress_cli.targets import parse_targets

    for name, value in (("--threads", threads), ("--iterations", iterations)):
        if value < 1:
            raise UsageError(f"{name} {value} is too small", "at least 1")
    batches = _batches(batch)
    if budget <= 0 or timeout <= 0:
        raise UsageError("--budget and --timeout are seconds above 0", "for example --budget 6")
    targets = parse_targets(target or ["cloud-cpu"], config)
    from compress_cli.onnx_files import existing_onnx

    models = [existing_onnx(name) for name in (model, compressed) if name is not None]
    from compress_cli.benching import BenchOptions
    from compress_cli.benching import bench as run

    sweep = batches if len(batches) > 1 else ()
    options = BenchOptions(threads, batches[0], sweep, budget, iterations, timeout, binary, not no_memory, seed)
    out = Out(as_json=json, quiet=quiet)
    document = run(models, targets, options, out)
    out.result(document, lambda console: _render(document, console))
    return 0


def _batches(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) for word in words):
        raise UsageError(f"--batch {text!r} is no number of samples", "for example --batch 8, or --batch 1,8,32")
    return tuple(sorted({int(word) for word in words}))


def _render(document: dict[str, Any], console: Console) -> None:
    console.print(_models(document["models"]))
    for report in document["targets"]:
        if report["rows"]:
            console.print(_latencies(report))
        if report["failed"]:
            console.print(f"{report['target']} failed: {report['failed']}", markup=False)
            for line in report["log"].splitlines():
                console.print(f"  {line}", markup=False)
        if report["layers"]:
            console.print(_layers(report))
        if report["trustworthy"] is not None:
            verdict = "trustworthy" if report["trustworthy"] else "NOT trustworthy"
            console.print(f"{report['target']}: measurement {verdict}: {report['reason']}", markup=False)
        for note in report["notes"]:
            console.print(f"{report['target']}: {note}", markup=False)
    for sentence in document["sentences"]:
        console.print(sentence, markup=False)


def _models(models: list[dict[str, Any]]) -> Any:
    from rich.markup import escape

    table = _table("Files", "", *[row["profile"] for row in models])
    table.add_row("file", *[escape(Path(row["path"]).name) for row in models])
    table.add_row("size", *[format_bytes(row["bytes"]) for row in models])
    table.add_row("parameters", *[format_count(row["params"]) for row in models])
    table.add_row("MACs", *[format_count(row["macs"]) for row in models])
    table.add_row("FLOPs = 2 x MACs", *[format_count(row["flops"]) for row in models])
    return table


def _latencies(report: dict[str, Any]) -> Any:
    title = f"{report['target']}, {report['label']}: milliseconds per inference"
    energy = any(row.get("joules") is not None for row in report["rows"])
    table = _table(title, "", "p50", "p90", "fastest", "1/s", "load", "MB", "thr.", "batch", *(["J"] if energy else []))
    for row in report["rows"]:
        joules = [f"{row['joules']:.2g}" if row.get("joules") is not None else "-"] if energy else []
        table.add_row(row["profile"], *_cells(row), *joules)
    if report["ratio"] is not None:
        low, high = report["ratio_low"], report["ratio_high"]
        table.add_row("ratio", f"{report['ratio']:.3f}", f"{low:.3f}-{high:.3f}" if low is not None else "")
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [_number(row.get(name)) for name in ("p50_ms", "p90_ms", "min_ms", "load_ms")]
    if row.get("instructions"):
        cells[0] = f"{format_count(row['instructions'])} instr."
    elif "low_ms" in row:
        cells[1] = f"{row['low_ms']:.3g}-{row['high_ms']:.3g}"
    cells.insert(3, f"{1000 * row['batch'] / row['p50_ms']:.3g}" if row.get("p50_ms") else "-")
    memory = row.get("peak_rss_mb")
    return [*cells, "-" if memory is None else f"{memory:.0f}", str(row["threads"]), str(row["batch"])]


def _layers(report: dict[str, Any]) -> Any:
    from rich.markup import escape

    table = _table(f"{report['target']}: where the time goes", "layer", "kind", "ms", "bound by", "MACs")
    for layer in report["layers"]:
        macs = format_count(layer["macs"]) if layer["macs"] else "-"
        table.add_row(escape(layer["name"]), layer["type"], f"{layer['ms']:.2f}", layer["bound"], macs)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(title: str, *columns: str) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table
