"""What closed-form recovery gives on CIFAR-10, without a label or a gradient step of training.

python benchmarks/recovery.py --checkpoints ../shared/data/checkpoints --images CIFAR [--nets 20 56] [--only TEXT]

CIFAR holds train/CLASS/* and test/CLASS/*. Rows that `results/recovery.json` has already are not measured again, so an
interrupted run goes on where it stopped. Top-1 on all test images; images of the fit are the first of each class.
`oneshot.py` and `decompose_accuracy.py` have the same networks without recovery, and decomposed.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from compress_cli.recovery import RecoveryRecord, recover
from compress_cli.recovery.channel_prices import channel_prices
from examples import cifar_resnet
from profilers.machine import describe
from pruners import channels, magnitude

RESULTS = Path(__file__).parent / "results" / "recovery.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPARSITIES = ("0.7", "0.8", "0.9")
SPEEDUPS = (1.2, 1.5, 2.0)
COUNTS = (32, 128, 512, 1000)
Rows = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--nets", type=int, nargs="*", default=[20, 56])
    parser.add_argument("--only", default="", help="measure rows whose name contains this text")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    document = json.loads(arguments.results.read_text()) if arguments.results.exists() else {"rows": {}}
    document |= {"script": "benchmarks/recovery.py", "machine": describe()}
    data = Data(arguments.images)
    for depth in arguments.nets:
        net = trained(arguments.checkpoints, depth)
        for name, measure in rows(net, data):
            key = f"resnet{depth} | {name}"
            if key in document["rows"] or arguments.only not in key:
                continue
            document["rows"][key] = measure()
            print(key, json.dumps(document["rows"][key]), flush=True)
            arguments.results.write_text(json.dumps(document, indent=1) + "\n")


class Data:
    """The test set, and the first training images of each class; read when first needed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.classes = sorted(path.name for path in (root / "test").iterdir())
        self._test: tuple[Tensor, Tensor] | None = None

    def training(self, count: int) -> Tensor:
        """(count, 3, 32, 32), about the same number of each class."""
        each = -(-count // len(self.classes))
        files = [sorted((self.root / "train" / name).iterdir())[:each] for name in self.classes]
        return _read([file for group in zip(*files, strict=True) for file in group][:count])

    def top1(self, net: nn.Module) -> float:
        """Percent right of all test images."""
        if self._test is None:
            files = [(file, k) for k, name in enumerate(self.classes) for file in (self.root / "test" / name).iterdir()]
            self._test = _read([file for file, _ in files]), torch.tensor([k for _, k in files])
        images, labels = self._test
        with torch.no_grad():
            right = sum(
                int((net(batch).argmax(1) == truth).sum())
                for batch, truth in zip(images.split(250), labels.split(250), strict=True)
            )
        return round(100 * right / len(labels), 2)


def _read(files: Sequence[Path]) -> Tensor:
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255 for file in files])
    return ((torch.from_numpy(pixels) - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()


def trained(folder: Path, depth: int) -> nn.Module:
    net: nn.Module = getattr(cifar_resnet, f"resnet{depth}")()
    state = torch.load(folder / f"cifar10-resnet{depth}.th", map_location="cpu", weights_only=True)["state_dict"]
    net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return net.eval()


def rows(net: nn.Module, data: Data) -> Rows:
    """Names of all rows of one network, and how each is measured."""
    yield "dense", lambda: {"top1": data.top1(net)}
    for sparsity in SPARSITIES:
        yield f"magnitude {sparsity}", lambda s=sparsity: by_magnitude(net, data, s)
    for sparsity in SPARSITIES:
        yield f"price {sparsity}", lambda s=sparsity: by_price(net, data, s)
    for speedup in SPEEDUPS:
        yield f"channels {speedup}x", lambda x=speedup: by_channels(net, data, x, priced=False)
        yield f"channels by price {speedup}x", lambda x=speedup: by_channels(net, data, x, priced=True)
    for count in COUNTS:
        yield f"magnitude 0.8, {count} images", lambda n=count: by_magnitude(net, data, "0.8", n)


def by_magnitude(net: nn.Module, data: Data, sparsity: str, count: int = 1000) -> dict[str, Any]:
    """Global magnitude pruning, then recovery."""
    small = copy.deepcopy(net)
    plan = magnitude.plan(magnitude.candidates_in_module(small), magnitude.MagnitudeOptions(sparsity))
    magnitude.apply_(small, plan)
    return recovered(data, small, lambda x: recover(net, small, [x]), count)


def by_price(net: nn.Module, data: Data, sparsity: str) -> dict[str, Any]:
    """The same zeros in each layer, chosen by their price after compensation."""
    small = copy.deepcopy(net)
    plan = magnitude.plan(magnitude.candidates_in_module(small), magnitude.MagnitudeOptions(sparsity))
    zeros = {cut.name: cut.zeros_after for cut in plan.cuts}
    return recovered(data, small, lambda x: recover(net, small, [x], zeros=zeros), 1000)


def by_channels(net: nn.Module, data: Data, speedup: float, *, priced: bool) -> dict[str, Any]:
    """Channels by magnitude of the whole group, or by price, at a MACs budget, then recovery."""
    example = data.training(2)[:1]
    groups = channels.analyse(net, (example,))
    dense = channels.CostModel(groups).macs
    budget = channels.Budget(macs=int(dense / speedup))

    def choose(found: channels.Groups) -> channels.ChannelsPlan:
        scores = channel_prices(net, [data.training(1000)], found) if priced else channels.score(net, found)
        return channels.plan(found, scores, budget)

    fitted = channels.fit(net, (example,), groups, choose)
    small, plan = fitted.model, fitted.plan
    sizes = {"macs": plan.macs_after, "speedup": round(plan.macs_before / plan.macs_after, 4)}
    found = recovered(data, small, lambda x: recover(net, small, [x], correspondence=plan), 1000)
    return {**sizes, "params": plan.params_after, **found}


def recovered(data: Data, small: nn.Module, act: Callable[[Tensor], RecoveryRecord], count: int) -> dict[str, Any]:
    """Recover and measure: accuracy, seconds, and the peak memory of the process so far."""
    images = data.training(count)
    wall, cpu = time.perf_counter(), time.process_time()
    record = act(images)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "top1": data.top1(small),
        "chosen": record.chosen,
        "candidates": {name: round(error, 5) for name, error in record.candidates},
        "layers_kept": sum(layer.kept for layer in record.layers),
        "images": record.images,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    main()
