"""Every torchvision builder that exports: 90 % zeros, packed, opened, folded, unpacked, compared. Failures are listed.

For each builder (seeded weights, small networks first): export to ONNX, magnitude pruning of the file to 90 %, then
`packed` and `packed-cb4`. Recorded: bytes, entropy bound, whether ONNX Runtime folds the decoder, whether `packed`
gives the dense file's outputs bit for bit on two inputs, whether `unpack` gives every tensor back bit for bit.

Results are kept per builder, so that the script can be stopped and started again.

    python benchmarks/onnx_corpus.py [--only 'resnet*'] [--minutes N] [--output FILE]
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchvision
from onnx import numpy_helper
from torch import nn

from compress_cli.checkpoint.builder_index import builder_shapes, floating_builders
from compress_cli.onnx_input import prune_onnx
from exporters import files
from exporters.feeds import compare, random_feeds
from exporters.onnx_export import export
from exporters.packing import pack, unpack
from pruners.magnitude import MagnitudeOptions

RESULTS = Path(__file__).parent / "results" / "onnx_corpus.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="glob on the builder's name")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no builder after this time")
    parser.add_argument("--largest", type=int, default=400_000_000, help="most parameters of a builder that is tried")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = json.loads(options.output.read_text())["builders"] if options.output.exists() else {}
    begin = time.monotonic()
    for params, name in builders():
        if name in rows or not fnmatch.fnmatch(name, options.only) or params > options.largest:
            continue
        if time.monotonic() - begin > 60 * options.minutes:
            break
        rows[name] = {"params": params, **attempt(name)}
        save(options.output, rows)
        print(name, rows[name], flush=True)
    failed = [name for name, row in rows.items() if not row["ok"]]
    print(f"{len(rows) - len(failed)} of {len(rows)} packed, folded and equal; failed: {', '.join(failed) or 'none'}")


def builders() -> list[tuple[int, str]]:
    """(parameters, name) of every builder that is not a quantised twin, the smallest first."""

    def params(name: str) -> int:
        return sum(math.prod(shape) for shape in builder_shapes(name, {}).values())

    return sorted((params(name), name) for name in floating_builders())


def options_of(name: str) -> dict[str, Any]:
    backbone = any(word in name for word in ("rcnn", "retinanet", "fcos", "ssd", "deeplab", "lraspp", "fcn_"))
    return {"weights": None, "weights_backbone": None} if backbone else {"weights": None}


class _OneImage(nn.Module):
    """Detection networks take a list of images: here a batch of one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> Any:
        return self.model([image[0]])


def network(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, **options_of(name)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Linear) and not module.weight.any():  # an untrained ViT's head
            nn.init.normal_(module.weight, std=0.02)
    home = type(model).__module__
    if ".detection." in home:
        return _OneImage(model), (torch.rand(1, 3, 320, 320),)
    if ".video." in home:
        side = 224 if "mvit" in name else 112
        return model, (torch.randn(1, 3, 16, side, side),)
    if ".optical_flow." in home:
        return model, (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128))
    side = 299 if name == "inception_v3" else 224
    return model, (torch.randn(1, 3, side, side),)


def attempt(name: str) -> dict[str, Any]:
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            row = check(name, Path(folder))
        except Exception as error:  # whatever it is, it goes into the record
            row = {"ok": False, "why": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return {**row, "seconds": round(time.perf_counter() - begin, 1)}


def check(name: str, folder: Path) -> dict[str, Any]:
    model, inputs = network(name)
    names = [f"input_{place}" for place in range(len(inputs))]
    result = export(model, inputs, folder / "a.onnx", input_names=names, dynamic_batch=not isinstance(model, _OneImage))
    sparse = folder / "sparse.onnx"
    zeros = prune_onnx(folder / "a.onnx", sparse, MagnitudeOptions("0.9"))
    feeds = random_feeds(sparse, 2)
    row: dict[str, Any] = {
        "exporter": result.exporter,
        "dense_bytes": sparse.stat().st_size,
        "zeros_exact": zeros.zeros == zeros.asked,
    }
    for tier in ("packed", "packed-cb4"):
        found = pack(sparse, folder / f"{tier}.onnx", tier=tier)
        agreement = compare(sparse, folder / f"{tier}.onnx", feeds)
        row[tier] = {
            "bytes": found.bytes_after,
            "bound_bytes": found.bound_bytes,
            "folded": found.folded,
            "identical": agreement.identical or agreement.max_rel == 0.0,
            "rms_rel": agreement.rms_rel if agreement.rms_rel < float("inf") else None,
        }
    unpack(folder / "packed.onnx", folder / "plain.onnx")
    row["unpacked_equal"] = tensors(folder / "plain.onnx") == tensors(sparse)
    problems = [
        *([] if row["zeros_exact"] else ["zeros"]),
        *(f"{tier} not folded" for tier in ("packed", "packed-cb4") if not row[tier]["folded"]),
        *([] if row["packed"]["identical"] else ["outputs differ"]),
        *([] if row["unpacked_equal"] else ["unpack differs"]),
    ]
    return {**row, "ok": not problems, "why": ", ".join(problems)}


def tensors(path: Path) -> dict[str, bytes]:
    """Bytes of every initializer with at least 64 elements by name, negative zeros made positive."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in files.read(path).graph.initializer}
    return {name: (array + 0).tobytes() for name, array in arrays.items() if array.size >= 64}


def save(path: Path, rows: dict[str, Any]) -> None:
    document = {
        "what": "torchvision builders: exported, 90 % zeros, packed, folded, unpacked, compared",
        "versions": {name: version(name) for name in ("torch", "torchvision", "onnx", "onnxruntime")},
        "builders": rows,
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
