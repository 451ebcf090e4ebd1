"""`compress demo`: a small two-task network on real handwritten digits, trained here, then compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from compress_cli import options as o
from compress_cli.commands.common import deliver
from compress_cli.config import resolve
from compress_cli.console import Out, format_seconds
from compress_cli.errors import UsageError

EPILOG = "Example:  compress demo --method alds -o demo-run"

Folder = Annotated[str, o.option("-o", "--output", help="Folder for the demo. Default demo-run.", metavar="DIR")]
DemoMethod = Annotated[
    str, o.option("--method", help="magnitude (pruning), or alds (two thinner layers for one). Default magnitude.")
]
DemoSparsity = Annotated[
    str | None, o.option("--sparsity", help="magnitude: share of ranked weights to zero. Default 0.9.")
]
DemoParams = Annotated[str | None, o.option("--max-params", help="alds: parameters left. Default 40%.")]
DemoEpochs = Annotated[int, o.option("--epochs", help="Fine-tuning epochs. Default 10.")]


DEFAULTS: dict[str, tuple[str, dict[str, str]]] = {
    "magnitude": ("prune", {"sparsity": "0.9"}),
    "alds": ("decompose", {"max_params": "40%"}),
}
"""Verb and budget of each method."""


def demo(
    output: Folder = "demo-run",
    method: DemoMethod = "magnitude",
    sparsity: DemoSparsity = None,
    max_params: DemoParams = None,
    epochs: DemoEpochs = 10,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Train a small two-task CNN on 1,797 real handwritten digits and compress it: the whole job in under a minute.

    The first output names the digit, the second says whether it is even or odd. A second method in the same folder
    starts from the network that the first one trained.
    """
    if method not in DEFAULTS:
        raise UsageError(f"--method {method!r} is not part of the demo", f"valid: {', '.join(DEFAULTS)}")
    verb, budget = DEFAULTS[method]
    given = {"sparsity": sparsity, "max_params": max_params}
    wrong = [name for name, value in given.items() if value is not None and name not in budget]
    if wrong:
        flag = f"--{wrong[0].replace('_', '-')}"
        raise UsageError(f"{flag} has no meaning for --method {method} here", f"drop {flag}")
    out = Out(as_json=json, quiet=quiet)
    folder = Path(output)
    flags = {
        **{name: given[name] or value for name, value in budget.items()},
        "method": method,
        "epochs": epochs,
        "seed": seed or 0,
        "output": str(folder / method),
        "task": "compress_cli.demo.task",
        "arch": "compress_cli.demo.net:two_task_cnn",
        "input_shape": "1x8x8",
        "batch_size": 64,
    }
    config = resolve(verb, str(folder / "original.pt"), flags)

    from compress_cli.demo.train import write_original

    others = any((folder / other / "report.json").exists() for other in DEFAULTS if other != method)
    if others and not overwrite and (folder / "original.pt").exists() and not (folder / method).exists():
        out.info(f"Using the two-task digits network that is there: {folder / 'original.pt'}")
    else:
        seconds = write_original(folder / "original.pt", seed=seed or 0, overwrite=overwrite)
        out.info(f"Trained the two-task digits network in {format_seconds(seconds)}: {folder / 'original.pt'}")
    return deliver(config, out, resume=False, overwrite=overwrite)
