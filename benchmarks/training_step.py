"""What a training step costs: a plain PyTorch loop, our loop dense, with masks and with ST-3, interleaved.

    python benchmarks/training_step.py                # ResNet-20, batch 128, random images; a GPU is used when there

Each variant trains the same network on the same data in turn; the figure is the smallest of the repetitions. What masks
add is timed by itself and compared with a dense step; the rest of our loop is compared with the plain one. The limit
that the data path sets is timed too: 50,000 images of CIFAR-10's size in memory, shifted, mirrored, normalised.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import cifar_resnet  # noqa: E402

from compress_cli.config import resolve  # noqa: E402
from compress_cli.console import Out  # noqa: E402
from compress_cli.data import Data  # noqa: E402
from compress_cli.data.augment import Augmentation  # noqa: E402
from compress_cli.data.folders import ImageList  # noqa: E402
from compress_cli.data.loading import LoadedSplit  # noqa: E402
from compress_cli.data.preprocess import CIFAR10, Preprocess  # noqa: E402
from compress_cli.data.splits import MemoryImages  # noqa: E402
from compress_cli.quality import Quality  # noqa: E402
from compress_cli.session import open_session  # noqa: E402
from compress_cli.tasks import classification  # noqa: E402
from compress_cli.training.modes import choose_sparsifier  # noqa: E402
from compress_cli.training.recipe import Recipe  # noqa: E402
from compress_cli.training.soft import SoftThreshold  # noqa: E402
from compress_cli.training.sparse import Dense  # noqa: E402
from compress_cli.training.trainer import Trainer  # noqa: E402
from profilers.machine import describe  # noqa: E402
from pruners import magnitude  # noqa: E402
from pruners.masks import Masks  # noqa: E402
from pruners.schedules import CubicSchedule  # noqa: E402


class Repeated:
    """A split that gives the same ready batch every time: what is measured is the step, not the data."""

    labels = None

    def __init__(self, steps: int, batch: int, device: torch.device) -> None:
        data = TensorDataset(torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,)))
        self._batch = next(iter(LoadedSplit(data).batches([range(batch)], device=device)))
        self._images = steps * batch

    def __len__(self) -> int:
        return self._images

    def batches(self, pieces: Any, **_: Any) -> Any:
        """The batch, once per piece."""
        return (self._batch for _ in pieces)

    def describe(self) -> dict[str, Any]:
        """Nothing to say."""
        return {}


@contextmanager
def trainer(steps: int, batch: int, device: torch.device, mode: str | None) -> Any:
    torch.manual_seed(0)
    module = cifar_resnet.resnet20().to(device)
    keep = Dense()
    if mode is not None:
        plan = magnitude.plan(magnitude.candidates_in_module(module), magnitude.MagnitudeOptions("0.9"))
        if mode == "one-shot":
            magnitude.apply_(module, plan)
        ramp = CubicSchedule(0.0, 0.9, 0, 1, every=10**6)  # ranked once: a run ranks its weights some 200 times in all
        keep = choose_sparsifier(module, Masks(module, plan.names), plan, mode, steps, ramp)
    split = Repeated(steps, batch, device)
    with tempfile.TemporaryDirectory() as folder:
        config = resolve("prune", "x", {"output": folder + "/run", "sparsity": "0.9"})
        with open_session(config, Out(quiet=True), resume=False, overwrite=True) as session:
            quality = Quality(session, Data(classification(10), split, None, None, False, 0, None, {}), device)
            recipe = Recipe(epochs=1, lr=0.01, batch_size=batch)
            yield Trainer(module, quality, recipe, session, sparsifier=keep, teacher=None)


def plain(steps: int, batch: int, device: torch.device) -> Callable[[], None]:
    torch.manual_seed(0)
    module = cifar_resnet.resnet20().to(device).train()
    if device.type == "cuda":
        module = module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    ready = next(iter(Repeated(1, batch, device).batches([0])))
    images = ready.inputs[0].to(memory_format=torch.channels_last) if device.type == "cuda" else ready.inputs[0]

    def run() -> None:
        for _ in range(steps):
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                loss = nn.functional.cross_entropy(module(images), ready.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """CPU seconds on a CPU, where other processes share the cores; wall seconds on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - begin
    begin = time.process_time()
    run()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    variants = {"dense": None, "masked": "one-shot", "st3": "st3"}
    times: dict[str, list[float]] = {"plain": [], **{name: [] for name in variants}}
    for _ in range(options.repeat):
        times["plain"].append(seconds(plain(options.steps, options.batch, device), device))
        for name, mode in variants.items():
            with trainer(options.steps, options.batch, device, mode) as made:
                times[name].append(seconds(made.run, device))
    step = {name: 1000 * min(values) / options.steps for name, values in times.items()}
    masks, st3 = _mask_milliseconds(device), _soft_threshold_milliseconds(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        with trainer(options.steps, options.batch, device, "one-shot") as made:
            made.run()
    document = {
        "network": "ResNet-20, 3x32x32",
        "batch": options.batch,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, 1 thread, CPU time",
        "step_ms": step,
        "images_per_second": {name: 1000 * options.batch / value for name, value in step.items()},
        "data_path_images_per_second": _data_images_per_second(options.batch, device),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "masking_ms": masks,
        "st3_ms": st3,
        "st3_overhead": st3 / step["dense"],
        "masking_overhead": masks / step["dense"],
        "loop_overhead": step["dense"] / step["plain"] - 1,
        "repetitions": options.repeat,
        "machine": describe(),
    }
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
    if options.results:
        options.results.write_text(json.dumps(document, indent=1) + "\n")


def _data_images_per_second(batch: int, device: torch.device, images: int = 50_000, steps: int = 40) -> float:
    """How fast batches come when nothing is done with them; the best of three."""
    listed = ImageList(Path(), (Path("none.png"),) * images, tuple(i % 10 for i in range(images)), ())
    split = MemoryImages(listed, Preprocess("cifar10", (32, 32), 32, *CIFAR10), Augmentation.standard(3, 32))
    split._pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    split._done[:] = True
    order = torch.randperm(images)[: batch * steps].view(steps, batch).tolist()

    def once() -> None:
        for _ in split.batches(order, device=device, epoch=0):
            pass

    once()
    return batch * steps / min(seconds(once, device) for _ in range(3))


def _mask_milliseconds(device: torch.device) -> float:
    """Time of what masks add to one step: gradients, weights and momentum masked; the smallest of 50."""
    module = cifar_resnet.resnet20().to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    module(torch.randn(2, 3, 32, 32, device=device)).sum().backward()
    optimizer.step()
    plan = magnitude.plan(magnitude.candidates_in_module(module), magnitude.MagnitudeOptions("0.9"))
    magnitude.apply_(module, plan)
    masks = Masks(module, plan.names)

    def once() -> None:
        masks.mask_gradients_()
        masks.constrain_(optimizer)

    once()
    return 1000 * min(seconds(once, device) for _ in range(50))


def _soft_threshold_milliseconds(device: torch.device) -> float:
    """Time of what ST-3 adds to a step in which nothing is ranked anew; the smallest of 50."""
    module = cifar_resnet.resnet20().to(device)
    plan = magnitude.plan(magnitude.candidates_in_module(module), magnitude.MagnitudeOptions("0.9"))
    soft = SoftThreshold(module, plan, CubicSchedule(0.0, 0.9, 0, 1, every=10**6))
    soft.before_forward_(1)
    soft.after_backward_()

    def once() -> None:
        soft.before_forward_(2)
        soft.after_backward_()

    once()
    return 1000 * min(seconds(once, device) for _ in range(50))


if __name__ == "__main__":
    main()
