"""Accuracy of decomposed CIFAR-10 ResNets without any training: methods x budgets, params and MACs side by side.

Every method chooses on the same trained weights; accuracy is counted on the test images of an unpacked ImageFolder.
A pair of layers is evaluated as the dense layer with its reconstructed weight (the proof shows that they are equal),
batch norms folded in, which is several times faster. Data-aware methods see unlabelled training images. With --recover
the decoders are then refitted by `compress_cli.recovery` on the same images, which is recorded as a row of its own.
Rows that are there for the same number of images are kept, so that the script can be stopped and started again.

    OMP_NUM_THREADS=1 python benchmarks/decompose_accuracy.py --checkpoints ../shared/data/checkpoints --images DIR \\
        --recover [--only '*50%*' ...] [--again] [--minutes 13]
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

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
METHODS_FIRST = ("alds", "alds, all schemes", "fro sum")
BASELINES = ("svd", "svd-energy", "pca")
DEPTHS = (20, 56)
DEEP_BUDGETS: tuple[tuple[Quantity, float], ...] = (("params", 0.5), ("params", 0.3))
BUDGETS: tuple[tuple[Quantity, float], ...] = (("params", 0.7), *DEEP_BUDGETS, ("macs", 0.5))


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
    parser.add_argument("--depths", nargs="*", type=int, default=list(DEPTHS))
    parser.add_argument("--per-class", type=int, default=1000, help="test images of each class")
    parser.add_argument("--calib", type=int, default=300, help="unlabelled training images")
    parser.add_argument("--only", nargs="*", default=["*"], help="globs on rows such as `resnet20 | params 50% | svd`")
    parser.add_argument("--again", action="store_true", help="also repeat recorded rows")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no row after so many")
    parser.add_argument("--recover", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * arguments.minutes
    models = {depth: trained(arguments.checkpoints, depth) for depth in arguments.depths}
    images = read_images(arguments.images, arguments.per_class, arguments.calib)
    setting = {"test_images": len(images.labels), "calibration_images": arguments.calib}
    for net, quantity, share, name in wanted(arguments.depths):
        key = f"{quantity} {share:.0%} | {name}"
        if time.monotonic() > end or not any(fnmatchcase(f"resnet{net} | {key}", glob) for glob in arguments.only):
            continue
        rows = stored(arguments.results).get(f"resnet{net}", {})
        last = rows.get(f"{key}, recovered" if arguments.recover else key, {})
        if {**last, **setting} == last and not arguments.again:
            continue
        fresh: dict[str, Any] = {}
        if rows.get("dense", {}).get("test_images") != len(images.labels):
            fresh["dense"] = {"top1": accuracy(models[net], images), **setting}
        for suffix, row in tried(models[net], METHODS[name], (quantity, share), images, arguments.recover).items():
            fresh[key + suffix] = {**row, **setting}
        for text, row in fresh.items():
            print(f"resnet{net} {text}", json.dumps(row), flush=True)
        recorded = stored(arguments.results)  # again: another process may have written since
        recorded.setdefault(f"resnet{net}", {}).update(fresh)
        arguments.results.write_text(json.dumps(recorded, indent=1) + "\n")


def stored(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def wanted(depths: Sequence[int]) -> list[tuple[int, Quantity, float, str]]:
    """All rows: the candidates for the default first, then what they are compared with."""
    found: list[tuple[int, Quantity, float, str]] = []
    for names in (METHODS_FIRST, BASELINES, [name for name in METHODS if name not in (*METHODS_FIRST, *BASELINES)]):
        for depth in depths:
            budgets = BUDGETS if depth == DEPTHS[0] else DEEP_BUDGETS
            found += [(depth, quantity, share, name) for quantity, share in budgets for name in names]
    return found


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
    right, fast = 0, folded(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for batch, labels in zip(images.test.split(50), images.labels.split(50), strict=True):
            found = fast(batch.contiguous(memory_format=torch.channels_last))
            right += int((found.argmax(1) == labels).sum())
    return round(100 * right / len(images.labels), 2)


def folded(model: nn.Module) -> nn.Module:
    """A copy with every batch norm `bnN` in the convolution `convN` beside it."""
    twin: Any = copy.deepcopy(model)
    for parent in list(twin.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                convolution = name.replace("bn", "conv")
                setattr(parent, convolution, fuse_conv_bn_eval(getattr(parent, convolution), norm))
                setattr(parent, name, nn.Identity())
    result: nn.Module = twin
    return result


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
