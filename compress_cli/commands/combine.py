"""`compress combine`: decompose, cut channels, zero weights, pack: several methods in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from compress_cli import options as o
from compress_cli.commands.common import RunFlags
from compress_cli.config import resolve
from compress_cli.console import Out
from compress_cli.errors import EXIT_GATE, EXIT_OK

EPILOG = """Examples:

compress combine net.pt --step alds:max-params=70% --step magnitude:sparsity=0.8 --weights packed-cb4 --calib images/

compress combine net.th --arch nets.py:resnet56 --input-shape 3x32x32 --data cifar10 --epochs 1 --max-drop 1
 --step channels:max-flops=70%,score=taylor --step magnitude:sparsity=0.7

A step's budgets are relative to what the step before it left; --max-size, --max-drop and --max-latency of the command
are gates on the result, relative to the original."""

Steps = Annotated[
    list[str],
    o.option(
        "--step",
        help="METHOD:KEY=VALUE,...; keys are flags of that method. In order: decompositions, channels, magnitude.",
        panel=o.SELECT,
        metavar="STEP",
    ),
]


def combine(
    checkpoint: o.Checkpoint,
    step: Steps,
    ignore: o.Ignore = None,
    only: o.Only = None,
    arch: o.Arch = None,
    arch_args: o.ArchArgs = None,
    input_shape: o.InputShape = None,
    input: o.InputOption = None,
    trust_pickle: o.TrustPickle = None,
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
    weight_decay: o.WeightDecay = None,
    distill: o.Distill = None,
    recipe: o.RecipeOption = None,
    weights: o.WeightsOption = None,
    safetensors: o.Safetensors = None,
    max_params: o.MaxParams = None,
    max_flops: o.MaxFlops = None,
    max_size: o.MaxSize = None,
    max_drop: o.MaxDrop = None,
    max_latency: o.MaxLatency = None,
    exit_zero: o.ExitZero = None,
    output: o.Output = None,
    device: o.Device = None,
    threads: o.Threads = None,
    seed: o.Seed = None,
    no_bench: o.NoBench = False,
    no_export: o.NoExport = False,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    config: o.ConfigFile = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> int:
    """Run several methods one after the other on one network and compare the result with the original.

    With --calib each step is recovered in closed form before the next one; training (--epochs) comes at the end.
    """
    arguments = dict(locals())
    texts = arguments.pop("step")
    flags = RunFlags.split(arguments)
    out = Out(as_json=flags.as_json, quiet=flags.quiet, verbose=flags.verbose)
    base = resolve("combine", flags.checkpoint, flags.settings, flags.config_file)

    from compress_cli import combining

    steps = combining.parse_steps(texts)
    folder = Path(base.output or f"runs/{Path(base.checkpoint).name.split('.')[0]}-{'-'.join(s.slug for s in steps)}")
    report = combining.combine(base, steps, folder, out, resume=flags.resume, overwrite=flags.overwrite)

    from compress_cli.render.text import render_report

    out.result(report.to_dict(), lambda console: render_report(report, console))
    return EXIT_OK if report.ok or base.exit_zero else EXIT_GATE
