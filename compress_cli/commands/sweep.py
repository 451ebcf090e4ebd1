"""`compress sweep`: several methods at several budgets, and which results nothing else beats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from compress_cli import options as o
from compress_cli.commands.common import RunFlags
from compress_cli.config import resolve
from compress_cli.console import Out
from compress_cli.errors import EXIT_GATE, EXIT_OK, UsageError

EPILOG = """Examples:

compress sweep resnet50.pth --method magnitude --sparsity 0.5,0.7,0.9 --no-bench

compress sweep net.pt --method magnitude,alds --sparsity 0.8,0.9 --max-params 70%,50% --data DIR --epochs 0"""

Methods = Annotated[
    str | None, o.option("--method", help="Comma-separated methods. Default magnitude.", panel=o.SELECT)
]
Sparsities = Annotated[
    str | None, o.option("--sparsity", help="Comma-separated sparsities for magnitude: 0.5,0.8.", panel=o.SELECT)
]
Params = Annotated[
    str | None, o.option("--max-params", help="Comma-separated budgets for the other methods.", panel=o.SELECT)
]
Flops = Annotated[
    str | None, o.option("--max-flops", help="Comma-separated budgets for the other methods.", panel=o.SELECT)
]


def sweep(
    checkpoint: o.Checkpoint,
    method: Methods = None,
    sparsity: Sparsities = None,
    max_params: Params = None,
    max_flops: Flops = None,
    score: o.ScoreOption = None,
    ignore: o.Ignore = None,
    arch: o.Arch = None,
    arch_args: o.ArchArgs = None,
    input_shape: o.InputShape = None,
    input: o.InputOption = None,
    data: o.DataDir = None,
    task: o.TaskFile = None,
    calib: o.Calib = None,
    calib_samples: o.CalibSamples = None,
    preprocess: o.Preprocess = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.Resize = None,
    epochs: o.Epochs = None,
    lr: o.LearningRate = None,
    batch_size: o.BatchSize = None,
    distill: o.Distill = None,
    weights: o.WeightsOption = None,
    output: o.Output = None,
    device: o.Device = None,
    threads: o.Threads = None,
    seed: o.Seed = None,
    no_bench: o.NoBench = False,
    no_export: o.NoExport = False,
    resume: o.Resume = False,
    config: o.ConfigFile = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> int:
    """Run every method at every budget with shared caches; mark the results that no other one beats."""
    arguments = dict(locals())
    budgets = {name: _words(arguments.pop(name)) for name in ("sparsity", "max_params", "max_flops")}
    methods = _words(arguments.pop("method")) or ["magnitude"]
    flags = RunFlags.split(arguments)
    out = Out(as_json=flags.as_json, quiet=flags.quiet, verbose=flags.verbose)
    base = resolve("sweep", flags.checkpoint, flags.settings, flags.config_file)
    if base.export is False and base.data is None and base.task is None:
        raise UsageError("nothing would be measured", "drop --no-export, or add --data DIR")

    from compress_cli import sweeping

    points = sweeping.grid(methods, budgets)
    folder = Path(base.output or f"runs/{Path(base.checkpoint).name.split('.')[0]}-sweep")
    results = sweeping.sweep(base, points, folder, out, resume=flags.resume)

    from compress_cli.render import words
    from compress_cli.render.text import table

    def render(console: object) -> None:
        console.print(table(words.sweep(results)))  # type: ignore[attr-defined]
        console.print(f"Files: {folder}/ (sweep.html holds the plot)", markup=False)  # type: ignore[attr-defined]

    out.result(sweeping.to_dict(results), render)
    return EXIT_GATE if all(result.error for result in results) else EXIT_OK


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]
