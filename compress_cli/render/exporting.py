"""What `compress export` prints: the file, its size beside the dense one, and what was proved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from compress_cli.quantities import format_bytes

if TYPE_CHECKING:
    from rich.console import Console


def render_export(document: Mapping[str, Any], console: Console) -> None:
    """Plain lines, readable in 80 columns."""
    for line in _lines(document):
        console.print(line, markup=False, soft_wrap=True)


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    variant = document["variant"]
    yield f"{document['file']}  ({document['weights']} weights, {document['seconds']:.0f} s)"
    share = document["bytes"] / document["dense_bytes"]
    yield f"  size      {_size(document, '')}, {share:.1%} of the dense file"
    yield f"  dense     {_size(document, 'dense_')}"
    yield from _packing(variant)
    if document["verification"]:
        proof = document["verification"]
        yield f"  PyTorch   equal to {proof['max_rel']:.1e} of the largest output, {proof['comparisons']} comparisons"
    yield f"  dense vs  {_difference(variant)}"
    if variant["int8"]:
        fusion = variant["int8"]["fusion"]
        yield f"  int8      {sum(fusion['int8'].values())} products in int8, {sum(fusion['float'].values())} in float"
    if variant["weights"].startswith("packed"):
        yield "  speed     that of the dense file: packing saves bytes, not time"
    for row in document["mobile"] or ():
        yield f"  mobile    {row['engine']}: {row['supported']} of {row['nodes']} nodes, suitable: {row['suitability']}"
    if document["ort"]:
        yield f"  .ort      {document['ort']['ort']}, {format_bytes(document['ort']['ort_bytes'])} (weights unpacked)"
    for found in document["phone_files"]:
        precision = "fp16" if found["half_precision"] else "fp32"
        yield (
            f"  {found['format']:<9} {' '.join(found['files'])}, {format_bytes(found['bytes'])} (dense, {precision}), "
            f"outputs differ by {found['comparison']['rms_rel']:.1e}"
        )
    for note in document["notes"]:
        yield f"  note      {note}"


def _size(document: Mapping[str, Any], prefix: str) -> str:
    plain, gzip = document[f"{prefix}bytes"], document[f"{prefix}gzip_bytes"]
    return format_bytes(plain) + ("" if gzip is None else f" ({format_bytes(gzip)} gzipped)")


def _packing(variant: Mapping[str, Any]) -> Iterator[str]:
    packing = variant["packing"] or (variant["int8"] or {}).get("packing")
    if packing and packing["tensors"]:
        bound = packing["bound_bytes"] + packing["graph_bytes"]
        over = packing["bytes_after"] / max(bound, 1) - 1
        yield f"  entropy   {format_bytes(bound)} with the graph; the file is {over:.1%} above this bound"
        state = {True: "unpacked once, while loading", False: "unpacked at every run", None: "not checked"}
        yield f"  decoder   {state[packing['folded']]}; {len(packing['tensors'])} tensors packed"


def _difference(variant: Mapping[str, Any]) -> str:
    found = variant["comparison"]
    if found["identical"] or (found["max_rel"] == 0 and not variant["tolerance"]):
        return f"identical outputs on {found['inputs']} inputs"
    inputs = f"{found['inputs']} {'random' if variant['synthetic'] else 'calibration'} inputs"
    return f"outputs differ by {found['rms_rel']:.2%} (limit {variant['tolerance']:.2%}) on {inputs}"
