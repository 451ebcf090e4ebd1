"""`compress inspect`: what is in a checkpoint, an ONNX file or a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_cli import options as o
from compress_cli.console import Out
from compress_cli.errors import UsageError
from compress_cli.rundir import finite

EPILOG = """Examples:

compress inspect model.pt

compress inspect weights.pth --arch torchvision:resnet18 --groups --top 0

compress inspect runs/resnet50-magnitude-0.9 --json"""

Target = Annotated[str, typer.Argument(metavar="PATH", help="Checkpoint, ONNX file or run folder.", show_default=False)]
Top = Annotated[int, o.option("--top", help="Show the N largest tensors; 0 shows all. Default 10.", metavar="N")]

GroupsFlag = Annotated[
    bool, o.option("--groups", help="Also show which channels must go together, and which are frozen and why.")
]


def inspect(
    path: Target,
    arch: o.Arch = None,
    arch_args: o.ArchArgs = None,
    input_shape: o.InputShape = None,
    input: o.InputOption = None,
    trust_pickle: o.TrustPickle = None,
    groups: GroupsFlag = False,
    top: Top = 10,
    json: o.Json = False,
) -> int:
    """Show kind, architecture, tensors, zeros, MACs, plans applied, and what pruning would rank or leave alone."""
    if top < 0:
        raise UsageError(f"--top {top} is below 0", "pass --top 10, or --top 0 for all tensors")
    out = Out(as_json=json)
    target = Path(path)
    named = {
        "--groups": groups,
        "--arch": arch,
        "--arch-args": arch_args,
        "--input-shape": input_shape,
        "--input": input,
        "--trust-pickle": trust_pickle,
    }
    given = next((flag for flag, value in named.items() if value), None)
    if target.is_dir() and any((target / name).exists() for name in ("report.json", "state.json", "config.json")):
        _refuse(given, target, "a run folder", f"drop {given}, or inspect {target / 'model.pt'}")
        return _run_folder(target, out)

    from compress_cli.checkpoint.sniff import Kind, sniff

    if sniff(target) is Kind.ONNX:
        _refuse(given, target, "an ONNX file", f"drop {given}, or pass the checkpoint it was exported from")
        return _onnx(target, out)
    from compress_cli.inspection import inspect_checkpoint
    from compress_cli.render.inspection import render_checkpoint

    found = inspect_checkpoint(
        target,
        arch=arch,
        arch_args=arch_args or (),
        input_shape=input_shape,
        inputs=input or (),
        trust_pickle=bool(trust_pickle),
        groups=groups,
    )
    out.result(finite(found.to_dict()), lambda console: render_checkpoint(found, console, top))
    return 0


def _refuse(flag: str | None, target: Path, kind: str, fix: str) -> None:
    if flag is not None:
        raise UsageError(f"{flag} needs a PyTorch checkpoint, and {target} is {kind}", fix)


def _onnx(file: Path, out: Out) -> int:
    from compress_cli.onnx_summary import inspect_onnx
    from compress_cli.render.inspection import render_onnx

    found = inspect_onnx(file)
    out.result(found.to_dict(), lambda console: render_onnx(found, console))
    return 0


def _run_folder(folder: Path, out: Out) -> int:
    from compress_cli.render.inspection import render_run
    from compress_cli.run_summary import inspect_run

    found = inspect_run(folder)
    out.result(found.to_dict(), lambda console: render_run(found, console))
    return 0
