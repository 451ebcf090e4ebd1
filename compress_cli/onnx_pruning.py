"""`compress prune model.onnx`: magnitude pruning of an ONNX file that has no PyTorch network behind it.

Zeroing weights and packing them need the file only. What needs the network (fine-tuning, channels, accuracy, budgets of
FLOPs or latency) is refused with what to pass instead.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_cli.atomic import atomic_path
from compress_cli.console import Out
from compress_cli.errors import EXIT_OK, UsageError, VerificationError
from compress_cli.onnx_files import free_target, onnx_errors, published
from compress_cli.quantities import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from compress_cli.commands.common import RunFlags
    from compress_cli.config import RunConfig

UNDERSTOOD = frozenset(
    {
        "sparsity",
        "scope",
        "score",
        "floor",
        "ignore",
        "only",
        "weights",
        "output",
        "seed",
        "threads",
        "bench",
        "export",
        "method",
        "device",
        "exit_zero",
    }
)
"""Settings that mean something for an ONNX file."""


def is_onnx(name: str) -> bool:
    """Whether the file is an ONNX model."""
    from compress_cli.checkpoint.sniff import Kind, sniff

    return Path(name).is_file() and sniff(Path(name)) is Kind.ONNX


def prune_file(flags: RunFlags) -> int:
    """Zero the smallest weights, write the file in the wanted form, compare and report.

    Raises:
        CompressError: with the exit code of design.md section 4.
    """
    from compress_cli.config import resolve

    begin = time.perf_counter()
    config = resolve("prune", flags.checkpoint, flags.settings, flags.config_file)
    _refuse(config, flags)
    source, out = Path(flags.checkpoint), Out(as_json=flags.as_json, quiet=flags.quiet, verbose=flags.verbose)
    target = _target(config, source, overwrite=flags.overwrite)
    with (
        _folder(target.parent),
        onnx_errors(),
        published(target, overwrite=flags.overwrite) as work,
        tempfile.TemporaryDirectory() as scratch,
    ):
        document = _carry_out(config, source, work, Path(scratch), out)
    document |= {"file": str(target), "seconds": time.perf_counter() - begin}
    if target.name == "model.onnx":
        text = json.dumps(document, indent=1) + "\n"
        with atomic_path(target.with_name("pruning.json")) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def show(console: Console) -> None:
        for line in _lines(document):
            console.print(line, markup=False, soft_wrap=True)

    out.result(document, show)
    return EXIT_OK


def _refuse(config: RunConfig, flags: RunFlags) -> None:
    given = [
        name for name, value in flags.settings.items() if value not in (None, [], False) and name not in UNDERSTOOD
    ]
    if flags.resume:
        given.append("resume")
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise UsageError(
            f"{flag} needs the PyTorch network, and {flags.checkpoint} is an ONNX file: magnitude pruning and the form "
            "of the weights are what it allows",
            f"drop {flag}, or pass the checkpoint that the file was exported from",
        )
    if config.method != "magnitude" or not config.sparsity:
        raise UsageError(
            f"an ONNX file can be pruned by magnitude only, and {flags.checkpoint} is one",
            "pass --sparsity 0.9, or the checkpoint that the file was exported from",
        )
    if config.score == "recovery":
        raise UsageError("--score recovery runs the PyTorch network", "--score magnitude, lamp or erk")


def _target(config: RunConfig, source: Path, *, overwrite: bool) -> Path:
    """`-o DIR` gives DIR/model.onnx; `-o FILE.onnx` that file; the default is a folder in runs/."""
    wanted = Path(config.output or f"runs/{source.stem}-magnitude-{config.sparsity}")
    if wanted.suffix.lower() == ".onnx":
        return free_target(str(wanted), source, overwrite=overwrite)
    if wanted.exists() and not wanted.is_dir():
        raise UsageError(f"-o {wanted} is a file that is already there", "name a folder, or a file that ends in .onnx")
    return free_target(str(wanted / "model.onnx"), source, overwrite=overwrite)


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make the run folder; a failure leaves no empty one behind."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _carry_out(config: RunConfig, source: Path, work: Path, scratch: Path, out: Out) -> dict[str, Any]:
    from compress_cli.onnx_input import prune_onnx
    from compress_cli.translate import pruning_errors
    from compress_cli.weight_forms import write_form
    from exporters.unpacking import unpack
    from profilers.size import file_size
    from pruners.magnitude import MagnitudeOptions

    plain, pruned = scratch / "plain.onnx", scratch / "pruned.onnx"
    out.info(f"Reading {source}")
    unpack(source, plain)
    with pruning_errors():
        options = MagnitudeOptions(
            str(config.sparsity),
            config.scope,  # type: ignore[arg-type]
            config.score or "magnitude",  # type: ignore[arg-type]
            config.floor,
            config.ignore,
            config.only,
        )
        found = prune_onnx(plain, pruned, options)
    if found.zeros < found.asked:
        raise VerificationError(
            f"{found.zeros} zeros were counted in the written file, asked: {found.asked}", "report the file"
        )
    variant = write_form(pruned, work, config.weights, say=out.info)
    for note in variant.notes:
        out.warning(note)
    before, after = file_size(plain), file_size(work)
    return {
        "schema_version": 1,
        "ok": True,
        "command": "prune",
        "source": str(source),
        "weights": variant.weights,
        "pruning": found.to_dict(),
        "bytes_before": before.bytes,
        "gzip_bytes_before": before.gzip_bytes,
        "bytes": variant.bytes,
        "gzip_bytes": after.gzip_bytes,
        "comparison": dataclasses.asdict(variant.comparison),
        "folded": variant.packing.folded if variant.packing else None,
        "notes": list(variant.notes),
    }


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    found = document["pruning"]
    share = found["zeros"] / max(found["weights"], 1)
    yield f"{document['file']}  ({document['weights']} weights, {document['seconds']:.0f} s)"
    yield f"  zeros     {found['zeros']:,} of {found['weights']:,} weights ({share:.2%}), asked: {found['asked']:,}"
    yield (
        f"  size      {format_bytes(document['bytes'])}, before: {format_bytes(document['bytes_before'])} "
        f"({document['bytes'] / document['bytes_before']:.1%})"
    )
    yield "  speed     unchanged: zeros do not make a runtime faster, the file is what gets smaller"
    yield "  accuracy  not measured: an ONNX file cannot be fine-tuned here; evaluate it, or prune the checkpoint"
    for name, reason in found["skipped"]:
        yield f"  left      {name}: {reason}"


__all__ = ["UNDERSTOOD", "is_onnx", "prune_file"]
