"""Original and compressed model on emulated ARM64: outputs against this machine's, instructions per inference.

    python benchmarks/mobile_qemu.py FOLDER [original.onnx compressed.onnx ...] [--size 224]

Without files: ResNet-18 (random weights) as it is, with half the channels, and with 90 % zeros as a packed
file. FOLDER holds `root/`, `site/` and `insn.so` (see profilers/runners/qemu.py). Writes `results/mobile_qemu.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
import torchvision
from latency_targets import half_channels

from exporters.onnx_export import export
from exporters.packing import pack
from profilers.machine import describe
from profilers.onnx_cost import graph_cost
from profilers.runners.qemu import QemuRunner
from profilers.runners.result import Settings

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record(arguments.folder, arguments.models or networks(Path(folder), arguments.size))


def networks(folder: Path, size: int) -> list[Path]:
    """The three files of ResNet-18 for images of `size`."""
    x = (torch.zeros(1, 3, size, size),)
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    names = ["resnet18.onnx", "resnet18-half-channels.onnx", "resnet18-90-zeros.onnx", "resnet18-90-packed.onnx"]
    paths = [folder / name for name in names]
    export(model, x, paths[0], input_names=["input"], dynamic_batch=False)
    export(half_channels(model), x, paths[1], input_names=["input"], dynamic_batch=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            weight = module.weight.data
            weight[weight.abs() <= weight.abs().flatten().kthvalue(int(0.9 * weight.numel())).values] = 0
    export(model, x, paths[2], input_names=["input"], dynamic_batch=False)
    pack(paths[2], paths[3])
    return [paths[0], paths[1], paths[3]]


def record(folder: Path, models: list[Path]) -> None:
    found = QemuRunner(folder, sys.executable).emulate(models, Settings(timeout_s=1800))
    rows = []
    for path, one in zip(models, found, strict=True):
        macs = graph_cost(path).macs
        per_mac = one.instructions / macs if one.instructions and macs else None
        rows.append({**asdict(one), "macs": macs, "bytes": path.stat().st_size, "instructions_per_mac": per_mac})
        if rows and one.instructions and rows[0]["instructions"]:
            rows[-1]["instructions_of_original"] = one.instructions / rows[0]["instructions"]
    document = {"what": __doc__.splitlines()[0], "cpu": "cortex-a76 (emulated)", "machine": describe(), "models": rows}
    (RESULTS / "mobile_qemu.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
