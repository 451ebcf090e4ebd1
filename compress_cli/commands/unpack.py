"""`compress unpack`: a packed ONNX file back to a plain one, equal bit for bit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress_cli import options as o
from compress_cli.console import Out
from compress_cli.quantities import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = "Example:  compress unpack model.onnx -o plain.onnx"

Source = Annotated[str, typer.Argument(metavar="FILE", help="Packed ONNX file.", show_default=False)]
Target = Annotated[
    str | None, o.option("-o", "--output", help="Plain file to write (default: NAME.plain.onnx).", metavar="FILE")
]


def unpack(
    file: Source,
    output: Target = None,
    overwrite: Annotated[bool, o.option("--overwrite", help="Replace a file that is already there.")] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> int:
    """Expand a packed ONNX file: every weight as the decoder gives it, bit for bit, the rest of the graph as it is."""
    from compress_cli.onnx_files import existing_onnx, free_target, onnx_errors, published

    begin = time.perf_counter()
    source = existing_onnx(file)
    target = free_target(output or str(source.with_suffix(".plain.onnx")), source, overwrite=overwrite)
    with onnx_errors():
        from exporters.unpacking import unpack as expand

        with published(target, overwrite=overwrite) as work:
            names = expand(source, work)
            files = tuple(work.parent.iterdir())
            size = sum(path.stat().st_size for path in files)
    out = Out(as_json=json, quiet=quiet)
    document: dict[str, Any] = {
        "schema_version": 1,
        "ok": True,
        "command": "unpack",
        "source": str(source),
        "file": str(target),
        "unpacked": list(names),
        "bytes_before": source.stat().st_size,
        "bytes_after": size,
        "seconds": time.perf_counter() - begin,
    }
    if not names:
        out.warning(f"{source} holds no packed weights: {target} is an unchanged copy")
    out.result(document, lambda console: _render(document, console))
    return 0


def _render(document: dict[str, Any], console: Console) -> None:
    sizes = f"{format_bytes(document['bytes_before'])} -> {format_bytes(document['bytes_after'])}"
    console.print(
        f"{document['file']}: {len(document['unpacked'])} tensors unpacked, {sizes}, {document['seconds']:.1f} s",
        markup=False,
        soft_wrap=True,
    )
