"""`compress combine`: decompose, cut channels, zero weights, pack: several methods in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from compress_cli import options as o
from compress_cli.commands.common import RunFlags
from compress_cli.commands.groups import CALL, DATA, FOLDER, GATES, MODEL, OUTPUT, TRAINING, takes
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


@takes(MODEL, DATA, TRAINING, GATES, OUTPUT, FOLDER, CALL)
def combine(
    checkpoint: o.Checkpoint,
    step: Steps,
    ignore: o.Ignore = None,
    only: o.Only = None,
    **shared: Any,
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
