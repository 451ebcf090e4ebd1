"""`compress recover`: a compressed model brought nearer to its original from unlabelled images, in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress_cli import options as o
from compress_cli.commands.groups import CALIB, CALL, MODEL, takes
from compress_cli.config import resolve
from compress_cli.console import Out

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = """Examples:

compress recover pruned.pt --original net.pt --calib images/

compress recover pruned.pth --original resnet50.pth --arch torchvision:resnet50 --calib images/ -o recovered.pt

compress recover runs/net-magnitude-0.9/model.pt --original net.pt --data cifar10 --json

compress recover pruned.pt --original net.pt --calib synthetic"""

Original = Annotated[
    str,
    typer.Option("--original", help="Checkpoint before compression.", metavar="FILE", show_default=False),
]
Target = Annotated[
    str | None, o.option("-o", "--output", help="File to write (default: NAME-recovered.pt).", metavar="FILE")
]
LISTED = 5
"""So many layers with the largest remaining error are listed."""


@takes(MODEL, CALIB, CALL)
def recover(
    checkpoint: o.Checkpoint,
    original: Original,
    output: Target = None,
    data: o.DataDir = None,
    device: o.Device = None,
    seed: o.Seed = None,
    overwrite: o.Overwrite = False,
    **shared: Any,
) -> int:
    """Solve the remaining weights for the original's outputs, layer by layer: no labels, no training.

    Zeros stay zero, shapes and names stay. What does not help on held-out images is undone. Without any images,
    --calib synthetic makes some up from the statistics of the original's batch norms; real ones give far more.
    """
    from compress_cli.recovering import run_recover, target_file

    config, json, quiet, verbose = (shared.pop(name) for name in CALL)
    flags = {"data": data, "device": device, "seed": seed, **shared}
    out = Out(as_json=json, quiet=quiet, verbose=verbose)
    target = target_file(checkpoint, output, overwrite=overwrite)
    document = run_recover(resolve("recover", checkpoint, flags, config), original, target, out)
    out.result(document, lambda console: _render(document, console))
    return 0


def _render(document: dict[str, Any], console: Console) -> None:
    found = document["recovery"]
    kept = [layer for layer in found["layers"] if layer["kept"]]
    lines = [
        f"{document['file']}: {found['summary']}",
    ]
    for stage, scores in document["scores"].items():
        lines += [f"  {name} {stage:<12} {score['value']:.2f}" for name, score in scores.items()]
    worst = sorted(kept, key=lambda layer: -layer["after"])[:LISTED]
    lines += [f"  {layer['name']:<40} {layer['before']:.3f} -> {layer['after']:.3f}" for layer in worst]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
