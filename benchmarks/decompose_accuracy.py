"""Accuracy of decomposed CIFAR-10 ResNets without any training: methods x budgets, params and MACs side by side.

Every method chooses on the same trained weights; accuracy is counted on the test images of an unpacked ImageFolder.
A pair of layers is evaluated as the dense layer with its reconstructed weight (the proof shows that they are equal),
which is several times faster. Data-aware methods see unlabelled training images. With --recover the decoders are then
refitted by `compress_cli.recovery` on the same images, which is recorded as a row of its own.

    OMP_NUM_THREADS=1 python benchmarks/decompose_accuracy.py --checkpoints ../shared/data/checkpoints --images DIR
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from decomposers import alds
from decomposers.options import AldsOptions, options_of
from decomposers.surgery import restored
from decomposers.tables import Quantity
from examples import cifar_resnet

RESULTS = Path(__file__).parent / "results" / "decompose_accuracy.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
METHODS: dict[str, AldsOptions] = {
    "alds": AldsOptions(),
    "alds, slack unspent": AldsOptions(spend=False),
    "alds, all schemes": AldsOptions(schemes=(0, 1, 2, 3)),
    "fro sum": AldsOptions(objective="sum", error="fro"),
    "fro sum, all schemes": AldsOptions(objective="sum", error="fro", schemes=(0, 1, 2, 3)),
    "output sum, groups <= 16": AldsOptions(objective="sum", error="output", max_groups=16),
    "output sum, groups 1": AldsOptions(objective="sum", error="output", max_groups=1),
    "alds, groups 1": AldsOptions(max_groups=1),
    "svd": options_of("svd"),
    "svd-energy": options_of("svd-energy"),
    "pca": options_of("pca"),
}
BUDGETS: tuple[tuple[Quantity, float], ...] = (("params", 0.7), ("params", 0.5), ("params", 0.3), ("macs", 0.5))


@dataclass(frozen=True)
class Images:
    """Normalised test images with labels, and unlabelled training images."""

    test: Tensor
    labels: Tensor
    training: list[Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder with train/CLASS/* and test/CLASS/*")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--per-class", type=int, default=1000, help="test images of each class")
    parser.add_argument("--calib", type=int, default=300, help="unlabelled training images")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--budgets", nargs="*", default=[f"{q}:{s}" for q, s in BUDGETS])
    parser.add_argument("--recover", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = trained(arguments.checkpoints, arguments.depth)
    images = read_images(arguments.images, arguments.per_class, arguments.calib)
    recorded = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows: dict[str, Any] = recorded.setdefault(f"resnet{arguments.depth}", {})
    setting = {"test_images": len(images.labels), "calibration_images": arguments.calib}
    rows["dense"] = {"top1": accuracy(model, images), **setting}
    print("dense", rows["dense"], flush=True)
    for text in arguments.budgets:
        quantity, share = text.split(":")
        for name in arguments.methods:
            found = tried(model, METHODS[name], (quantity, float(share)), images, arguments.recover)
            for suffix, row in found.items():
                rows[f"{quantity} {float(share):.0%} | {name}{suffix}"] = {**row, **setting}
                print(f"{quantity} {share} {name}{suffix}", json.dumps(row), flush=True)
            RESULTS.write_text(json.dumps(recorded, indent=1) + "\n")


def trained(folder: Path, depth: int) -> nn.Module:
    model: nn.Module = getattr(cifar_resnet, f"resnet{depth}")()
    state = torch.load(folder / f"cifar10-resnet{depth}.th", map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()


def read_images(root: Path, per_class: int, calib: int) -> Images:
    classes = sorted(path.name for path in (root / "test").iterdir())
    files = [(file, k) for k, name in enumerate(classes) for file in first(root / "test" / name, per_class)]
    training = [file for name in classes for file in first(root / "train" / name, calib // len(classes))]
    test = read([file for file, _ in files])
    return Images(test, torch.tensor([k for _, k in files]), list(read(training).split(100)))


def first(folder: Path, count: int) -> list[Path]:
    return sorted(folder.iterdir())[:count]


def read(files: Sequence[Path]) -> Tensor:
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255 for file in files])
    values = (torch.from_numpy(pixels) - torch.tensor(MEAN)) / torch.tensor(STD)
    return values.permute(0, 3, 1, 2).contiguous()


def accuracy(model: nn.Module, images: Images) -> float:
    right = 0
    with torch.no_grad():
        for batch, labels in zip(images.test.split(250), images.labels.split(250), strict=True):
            right += int((model(batch).argmax(1) == labels).sum())
    return round(100 * right / len(images.labels), 2)


def tried(
    model: nn.Module, options: AldsOptions, budget: tuple[str, float], images: Images, recover: bool
) -> dict[str, dict[str, Any]]:
    quantity, share = budget
    begin = time.process_time()
    analysis = alds.analyse(model, images.test[:1], options, images=images.training if options.needs_images else ())
    total = analysis.structure.params if quantity == "params" else analysis.structure.macs
    plan = alds.choose(analysis, cost=quantity, budget=share * total)  # type: ignore[arg-type]
    small = copy.deepcopy(model)
    alds.apply_(small, plan, analysis.moments)
    seconds = time.process_time() - begin
    alds.prove(model, small, plan, images.test[:1])
    base = {
        "params": plan.params_after,
        "params_share": round(plan.params_after / plan.params_before, 4),
        "macs": plan.macs_after,
        "macs_share": round(plan.macs_after / plan.macs_before, 4),
        "max_score": plan.max_score,
    }
    plain = {**base, "top1": accuracy(restored(model, small, plan), images), "cpu_seconds": round(seconds, 1)}
    if not recover:
        return {"": plain}
    from compress_cli.recovery import recover as refit

    begin = time.process_time()
    record = refit(model, small, images.training)
    seconds = time.process_time() - begin
    after = {**base, "top1": accuracy(restored(model, small, plan), images), "cpu_seconds": round(seconds, 1)}
    return {"": plain, ", recovered": {**after, "summary": record.to_dict().get("summary", "")}}


if __name__ == "__main__":
    main()
