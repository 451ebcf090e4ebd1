"""What closed-form recovery gives on CIFAR-10, without a label or a gradient step of training.

python -m benchmarks.recovery --checkpoints ../shared/data/checkpoints --images CIFAR [--nets 56 20] [--only GLOB ...]

CIFAR holds train/CLASS/* and test/CLASS/*; decoded pixels are kept in the temporary folder. Rows that
`results/recovery.json` has already are not measured again, so an interrupted run goes on where it stopped, and
--minutes ends one in time. Top-1 on all test images; images of the fit are the first of each class. `weighted`: whether
positions counted as much as the outputs feel them (rows without were measured before that). `oneshot.py` has magnitude
without recovery; `recovery_cost.py` has time and memory.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from compress_cli.recovery import RecoveryRecord, recover
from compress_cli.recovery.channel_prices import channel_prices
from compress_cli.recovery.weight_prices import error_curves, share_zeros
from decomposers import alds
from decomposers.options import AldsOptions
from decomposers.surgery import restored
from examples import cifar_resnet
from profilers.machine import describe
from pruners import channels, magnitude

RESULTS = Path(__file__).parent / "results" / "recovery.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPARSITIES = ("0.9", "0.8", "0.7")
SPEEDUPS = (2.0, 1.5, 1.2)
SHARES = (0.3, 0.5, 0.7)
COUNTS = (0, 32, 128, 512)
INNER = ("conv1", "*.conv2", "linear")
"""Layers whose outputs are the residual streams."""
Rows = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--nets", type=int, nargs="*", default=[56, 20])
    parser.add_argument("--only", nargs="*", default=["*"], help="measure rows whose names match one of these")
    parser.add_argument("--again", action="store_true", help="measure rows anew that are there already")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no row after so many")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * arguments.minutes
    data = Data(arguments.images)
    for depth in arguments.nets:
        net = trained(arguments.checkpoints, depth)
        for name, measure in rows(net, data):
            key = f"resnet{depth} | {name}"
            known = key in recorded(arguments.results)["rows"] and not arguments.again
            wanted = any(fnmatchcase(key, text) for text in arguments.only)
            if known or not wanted or time.monotonic() > end:
                continue
            row = measure()
            document = recorded(arguments.results) | {"script": "benchmarks/recovery.py", "machine": describe()}
            document["rows"][key] = row
            arguments.results.write_text(json.dumps(document, indent=1) + "\n")
            print(key, json.dumps(row), flush=True)


def recorded(path: Path) -> dict[str, Any]:
    """What earlier runs found."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    return found


class Data:
    """The test set, and the first training images of each class; read when first needed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.classes = sorted(path.name for path in (root / "test").iterdir())
        self._test: Tensor | None = None

    def training(self, count: int) -> Tensor:
        """(count, 3, 32, 32), about the same number of each class."""
        files = [sorted((self.root / "train" / name).iterdir())[: -(-count // 10)] for name in self.classes]
        return normalised(pixels([file for group in zip(*files, strict=True) for file in group][:count]))

    def top1(self, net: nn.Module) -> float:
        """Percent right of all test images."""
        files = [
            (file, k) for k, name in enumerate(self.classes) for file in sorted((self.root / "test" / name).iterdir())
        ]
        if self._test is None:
            self._test = pixels([file for file, _ in files])
        labels = torch.tensor([k for _, k in files])
        with torch.no_grad():
            right = sum(
                int((net(normalised(batch)).argmax(1) == truth).sum())
                for batch, truth in zip(self._test.split(250), labels.split(250), strict=True)
            )
        return round(100 * right / len(labels), 2)


def pixels(files: Sequence[Path]) -> Tensor:
    """Decoded images (images, 3, height, width) as bytes; decoded once for all runs."""
    name = hashlib.sha256("".join(map(str, files)).encode()).hexdigest()[:16]
    cached = Path(tempfile.gettempdir()) / f"compress-benchmark-{name}.npy"
    if not cached.exists():
        found = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]).transpose(0, 3, 1, 2)
        temporary = cached.with_suffix(f".{time.monotonic_ns()}.npy")
        np.save(temporary, found)
        temporary.rename(cached)
    return torch.from_numpy(np.load(cached))


def normalised(images: Tensor) -> Tensor:
    """What the networks were trained on."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def trained(folder: Path, depth: int) -> nn.Module:
    net: nn.Module = getattr(cifar_resnet, f"resnet{depth}")()
    state = torch.load(folder / f"cifar10-resnet{depth}.th", map_location="cpu", weights_only=True)["state_dict"]
    net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return net.eval()


def rows(net: nn.Module, data: Data) -> Rows:
    """Names of all rows of one network, and how each is measured, the most important first."""
    for sparsity in SPARSITIES:
        yield f"magnitude {sparsity}", lambda s=sparsity: by_magnitude(net, data, s)
    for speedup in SPEEDUPS:
        yield f"channels {speedup}x", lambda x=speedup: by_channels(net, data, x)
    for share in SHARES:
        yield f"decomposed to {share:.0%}", lambda s=share: decomposed(net, data, s)
    for sparsity in SPARSITIES:
        yield f"price {sparsity}", lambda s=sparsity: by_price(net, data, s)
        yield f"price, magnitude's counts {sparsity}", lambda s=sparsity: by_price(net, data, s, curves=False)
    for speedup in SPEEDUPS:
        yield f"channels by price {speedup}x", lambda x=speedup: by_channels(net, data, x, priced=True)
        yield f"inner channels {speedup}x", lambda x=speedup: by_channels(net, data, x, ignore=INNER)
    yield "dense", lambda: {"top1": data.top1(net)}
    for count in COUNTS:
        yield f"magnitude 0.8, {count} images", lambda n=count: by_magnitude(net, data, "0.8", n)
        yield f"channels 1.5x, {count} images", lambda n=count: by_channels(net, data, 1.5, count=n)


def by_magnitude(net: nn.Module, data: Data, sparsity: str, count: int = 1000) -> dict[str, Any]:
    """Global magnitude pruning, then recovery."""
    small = copy.deepcopy(net)
    plan = magnitude.plan(magnitude.candidates_in_module(small), magnitude.MagnitudeOptions(sparsity))
    magnitude.apply_(small, plan)
    return recovered(data, small, lambda x: recover(net, small, [x]), count)


def by_price(net: nn.Module, data: Data, sparsity: str, *, curves: bool = True) -> dict[str, Any]:
    """`--score recovery`: as many zeros, chosen by their price; with magnitude's counts in each layer, or by curves."""
    small = copy.deepcopy(net)
    plan = magnitude.plan(magnitude.candidates_in_module(small), magnitude.MagnitudeOptions(sparsity))
    zeros = {cut.name: cut.zeros_after for cut in plan.cuts}
    if curves:
        found = error_curves(net, [data.training(1000)], list(zeros))
        zeros = share_zeros(found, sum(zeros.values()), plan.floor_count)
    return recovered(data, small, lambda x: recover(net, small, [x], zeros=zeros), 1000)


def by_channels(
    net: nn.Module,
    data: Data,
    speedup: float,
    *,
    priced: bool = False,
    ignore: tuple[str, ...] = (),
    count: int = 1000,
) -> dict[str, Any]:
    """Channels by magnitude of the whole group, or by price, at a MACs budget, then recovery."""
    example = data.training(2)[:1]
    groups = channels.analyse(net, (example,), ignore=ignore)
    budget = channels.Budget(macs=int(channels.CostModel(groups).macs / speedup))

    def choose(found: channels.Groups) -> channels.ChannelsPlan:
        scores = channel_prices(net, [data.training(1000)], found) if priced else channels.score(net, found)
        return channels.plan(found, scores, budget)

    fitted = channels.fit(net, (example,), groups, choose)
    small, plan = fitted.model, fitted.plan
    sizes = {"macs": plan.macs_after, "speedup": round(plan.macs_before / plan.macs_after, 4)}
    without = {"top1_without": data.top1(small)}
    found = recovered(data, small, lambda x: recover(net, small, [x], correspondence=plan), count)
    return {**sizes, "params": plan.params_after, **without, **found}


def decomposed(net: nn.Module, data: Data, share: float) -> dict[str, Any]:
    """ALDS to a share of the parameters, then recovery of the decoders."""
    analysis = alds.analyse(net, data.training(2)[:1], AldsOptions())
    plan = alds.choose(analysis, cost="params", budget=share * analysis.structure.params)
    small = copy.deepcopy(net)
    alds.apply_(small, plan, analysis.moments)
    sizes = {"params": plan.params_after, "macs": plan.macs_after}
    without = {"top1_without": data.top1(restored(net, small, plan))}
    found = recovered(data, small, lambda x: recover(net, small, [x]), 1000, judged=lambda: restored(net, small, plan))
    return {**sizes, **without, **found}


def recovered(
    data: Data,
    small: nn.Module,
    act: Callable[[Tensor], RecoveryRecord],
    count: int,
    judged: Callable[[], nn.Module] | None = None,
) -> dict[str, Any]:
    """Recover and measure; `judged` gives an equal network that runs faster."""
    if not count:
        return {"top1": data.top1(small), "chosen": "as compressed", "images": 0}
    images = data.training(count)
    wall, cpu = time.perf_counter(), time.process_time()
    record = act(images)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "top1": data.top1(judged() if judged else small),
        "chosen": record.chosen,
        "candidates": {name: round(error, 5) for name, error in record.candidates},
        "weighted": True,
        "layers_kept": sum(layer.kept for layer in record.layers),
        "images": record.images,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
    }


if __name__ == "__main__":
    main()
