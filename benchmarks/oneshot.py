"""One-shot pruning without training: top-1 on the 10,000 CIFAR-10 test images, before and after BN re-estimation.

Global magnitude, LAMP and ERK at 50, 70, 80 and 90 % on the published ResNet-20 and ResNet-56 weights. Batch-norm
statistics are re-estimated on training images and kept only if the loss on held-out training images falls; the table
shows both numbers whatever was kept. The results file grows row by row, so an interrupted run goes on.

    python benchmarks/oneshot.py --data DIR --checkpoints DIR

DIR holds the CIFAR-10 trees train/ and test/; the checkpoints are cifar10-resnet20.th and cifar10-resnet56.th.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch

from compress_cli.checkpoint import load
from compress_cli.config import resolve
from compress_cli.console import Out
from compress_cli.quality import Quality, open_quality
from compress_cli.session import Session
from profilers.complexity import measure
from profilers.machine import describe
from pruners import magnitude

ROOT = Path(__file__).resolve().parents[1]
SPARSITIES = ("0.5", "0.7", "0.8", "0.9")
SCORES = ("magnitude", "lamp", "erk")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/oneshot.json")
    parser.add_argument("--nets", nargs="*", default=["resnet20", "resnet56"])
    parser.add_argument("--images", type=int, default=1024, help="training images for the statistics")
    arguments = parser.parse_args()
    document = _read(arguments.output)
    for net in arguments.nets:
        measure_net(net, arguments, document)


def measure_net(net: str, arguments: argparse.Namespace, document: dict[str, Any]) -> None:
    """All rows of one network that the document lacks."""
    checkpoint = arguments.checkpoints / f"cifar10-{net}.th"
    flags = {
        "sparsity": "0.9",
        "arch": f"{ROOT / 'examples/cifar_resnet.py'}:{net}",
        "input_shape": "3x32x32",
        "data": str(arguments.data),
        "mean": ".485,.456,.406",  # what these weights were trained with
        "std": ".229,.224,.225",
        "calib_samples": arguments.images,
        "epochs": 0,
    }
    session = Session(resolve("prune", str(checkpoint), flags), Out(quiet=True), None, resume=False)
    loaded = load(checkpoint, arch=flags["arch"], input_shape="3x32x32")
    quality = open_quality(session, loaded)
    assert quality is not None
    assert loaded.module is not None
    if net not in document["dense"]:
        document["dense"][net] = _top1(quality, loaded.module)
        _write(arguments.output, document)
    original = quality.original(loaded.module)
    for score in SCORES:
        for sparsity in SPARSITIES:
            if any((row["net"], row["score"], row["sparsity"]) == (net, score, sparsity) for row in document["rows"]):
                continue
            module = copy.deepcopy(loaded.module)
            row = {
                "net": net,
                "score": score,
                "sparsity": sparsity,
                **one_row(module, score, sparsity, quality, loaded, original),
            }
            document["rows"].append(row)
            _write(arguments.output, document)
            print(json.dumps(row))


def one_row(
    module: torch.nn.Module, score: str, sparsity: str, quality: Quality, loaded: Any, original: Any
) -> dict[str, Any]:
    """Prune a copy of the network and measure it before and after the re-estimation."""
    begin = time.perf_counter()
    options = magnitude.MagnitudeOptions(sparsity, "global", score, "0")  # type: ignore[arg-type]
    plan = magnitude.plan(magnitude.candidates_in_module(module), options)
    zeros = sum(magnitude.apply_(module, plan).values())
    seconds = time.perf_counter() - begin
    complexity = measure(module, loaded.example_inputs)
    pruned = _top1(quality, module)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    begin = time.perf_counter()
    record = quality.reestimate_batchnorm_(module, teacher=original)
    recalibration = time.perf_counter() - begin
    changed = any(not torch.equal(before[name], buffer) for name, buffer in module.named_buffers())
    return {
        "zeros": zeros,
        "asked": plan.zeros_asked,
        "ranked": plan.weights,
        "macs_pruned": round(1 - complexity.sparse_macs / complexity.macs, 4),
        "top1_pruned": pruned,
        "top1_recalibrated": _top1(quality, module) if changed else pruned,
        "kept": bool(record.get("kept")),
        "select_seconds": round(seconds, 3),
        "recalibrate_seconds": round(recalibration, 1),
    }


def _top1(quality: Quality, module: torch.nn.Module) -> float:
    (score,) = quality.evaluate(module).values()
    return round(score.value, 2)


def _read(path: Path) -> dict[str, Any]:
    if path.exists():
        document: dict[str, Any] = json.loads(path.read_text())
        return document
    return {"script": "benchmarks/oneshot.py", "machine": describe(), "dense": {}, "rows": []}


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
