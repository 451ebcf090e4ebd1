"""`compress demo`: a small two-task network on real handwritten digits, trained here, then compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from compress_cli import options as o
from compress_cli.commands.common import deliver
from compress_cli.config import resolve
from compress_cli.console import Out, format_seconds

EPILOG = "Example:  compress demo -o demo-run --overwrite"

Folder = Annotated[str, o.option("-o", "--output", help="Folder for the demo. Default demo-run.", metavar="DIR")]
DemoSparsity = Annotated[str, o.option("--sparsity", help="Share of ranked weights to zero. Default 0.9.")]
DemoEpochs = Annotated[int, o.option("--epochs", help="Fine-tuning epochs. Default 10.")]


def demo(
    output: Folder = "demo-run",
    sparsity: DemoSparsity = "0.9",
    epochs: DemoEpochs = 10,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Train a small two-task CNN on 1,797 real handwritten digits and prune it: the whole job in under a minute.

    The first output names the digit, the second says whether it is even or odd.
    """
    out = Out(as_json=json, quiet=quiet)
    folder = Path(output)
    flags = {
        "sparsity": sparsity,
        "epochs": epochs,
        "seed": seed or 0,
        "output": str(folder / "magnitude"),
        "task": "compress_cli.demo.task",
        "arch": "compress_cli.demo.net:two_task_cnn",
        "input_shape": "1x8x8",
        "batch_size": 64,
    }
    config = resolve("prune", str(folder / "original.pt"), flags)

    from compress_cli.demo.train import write_original

    seconds = write_original(folder / "original.pt", seed=seed or 0, overwrite=overwrite)
    out.info(f"Trained the two-task digits network in {format_seconds(seconds)}: {folder / 'original.pt'}")
    return deliver(config, out, resume=False, overwrite=overwrite)
