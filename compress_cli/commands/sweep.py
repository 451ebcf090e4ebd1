"""`compress sweep`: several methods at several budgets, and which results nothing else beats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from compress_cli import options as o
from compress_cli.commands.common import RunFlags
from compress_cli.commands.groups import CALL, DATA, MODEL, OUTPUT, TRAINING, takes
from compress_cli.completion import comma_separated
from compress_cli.config import resolve
from compress_cli.console import Out
from compress_cli.errors import EXIT_GATE, EXIT_OK, UsageError
from compress_cli.methods import METHODS
from compress_cli.quantities import parse_limit

EPILOG = """Examples:

compress sweep resnet50.pth --method magnitude --sparsity 0.5,0.7,0.9 --no-bench

compress sweep net.pt --method magnitude,alds --sparsity 0.8,0.9 --max-params 70%,50% --data DIR --epochs 0

compress sweep net.pt --workers 2 --weights packed-cb4 --calib images/ --data DIR --epochs 0
 --combine alds:max-params=80%+magnitude:sparsity=0.6 --combine channels:max-flops=70%+magnitude:sparsity=0.6"""

Methods = Annotated[
    str | None,
    o.option(
        "--method",
        help="Comma-separated methods. Default magnitude.",
        panel=o.SELECT,
        complete=comma_separated(METHODS),
    ),
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

Combinations = Annotated[
    list[str] | None,
    o.option(
        "--combine",
        help="Steps of `compress combine` joined by + (repeatable).",
        panel=o.SELECT,
        metavar="STEP+STEP",
    ),
]
Workers = Annotated[
    int | None, o.option("--workers", help="Points that run at the same time. Default 1.", panel=o.OUTPUT)
]
WorkerMemory = Annotated[
    str | None,
    o.option("--worker-memory", help="Memory that one worker may hold, such as 8GB.", panel=o.OUTPUT, metavar="SIZE"),
]


@takes(MODEL, DATA, TRAINING, OUTPUT, CALL)
def sweep(
    checkpoint: o.Checkpoint,
    method: Methods = None,
    combine: Combinations = None,
    workers: Workers = None,
    worker_memory: WorkerMemory = None,
    sparsity: Sparsities = None,
    max_params: Params = None,
    max_flops: Flops = None,
    score: o.ScoreOption = None,
    ignore: o.Ignore = None,
    resume: o.Resume = False,
    **shared: Any,
) -> int:
    """Run every method at every budget with shared caches; mark the results that no other one beats."""
    arguments = dict(locals())
    budgets = {name: _words(arguments.pop(name)) for name in ("sparsity", "max_params", "max_flops")}
    combinations = arguments.pop("combine") or []
    methods = _words(arguments.pop("method")) or ([] if combinations else ["magnitude"])
    several, memory = arguments.pop("workers"), arguments.pop("worker_memory")
    several = 1 if several is None else several
    flags = RunFlags.split(arguments)
    out = Out(as_json=flags.as_json, quiet=flags.quiet, verbose=flags.verbose)
    base = resolve("sweep", flags.checkpoint, flags.settings, flags.config_file)
    if base.export is False and base.data is None and base.task is None:
        raise UsageError("nothing would be measured", "drop --no-export, or add --data DIR")
    if several < 1:
        raise UsageError(f"--workers {several} is below 1", "pass --workers 1 or more")
    if several > 1 and base.bench:
        out.warning("latency is measured while other workers run: add --no-bench, or use --workers 1 for it")
    allowed = None if memory is None else _bytes(memory)

    from compress_cli import sweeping

    points = sweeping.grid(methods, budgets, combinations)
    folder = Path(base.output or f"runs/{Path(base.checkpoint).name.split('.')[0]}-sweep")
    results = sweeping.sweep(base, points, folder, out, resume=flags.resume, workers=several, memory=allowed)

    from compress_cli.render import words
    from compress_cli.render.text import table

    def render(console: object) -> None:
        console.print(table(words.sweep(results)))  # type: ignore[attr-defined]
        console.print(f"Files: {folder}/ (sweep.html holds the plot)", markup=False)  # type: ignore[attr-defined]

    out.result(sweeping.to_dict(results), render)
    return EXIT_GATE if all(result.error for result in results) else EXIT_OK


def _bytes(text: str) -> int:
    limit = parse_limit("--worker-memory", "bytes", text)
    if limit.relative:
        raise UsageError(f"--worker-memory {text!r} is no number of bytes", "write it like 8GB")
    return int(limit.value)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]
