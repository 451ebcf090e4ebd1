"""Three tasks on real photographs of coffee leaves: a task file and its network.

    tar xJf coffee-leaves.tar.xz -C leaves                                            (MIT, esgario/lara2018)
    COFFEE_LEAVES=leaves compress prune coffee.pt --arch examples/coffee_leaves.py:coffee_resnet \
        --input-shape 3x32x64 --task examples/coffee_leaves.py --method pagcp --max-flops 40%

`stress` (healthy, leaf miner, rust, phoma, cercospora) and `severity` (0 to 4) of 1,685 leaves, and a `mask`
(background, leaf, symptom) of 490 of them: leaves without a mask do not count for that task. The validation split
calibrates: the network has not learnt it, so that its losses are those of unseen leaves.
"""

from __future__ import annotations

import csv
import os
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, read_image
from torchvision.transforms import v2

from compress_cli.tasks import Task

HEIGHT, WIDTH = 32, 64
MISSING = -100


class Block(nn.Module):
    """Two 3x3 convolutions and a skip connection, as in ResNet-18."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.skip = nn.Identity()
        if stride != 1 or before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, h, w) -> (batch, after, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.skip(x))


class CoffeeResNet(nn.Module):
    """A ResNet-18 of small width with two classifying heads and one that labels pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        stages = [
            nn.Sequential(Block(before, after, 1 if place == 0 else 2), Block(after, after, 1))
            for place, (before, after) in enumerate(pairwise(sizes))
        ]
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.stress = nn.Linear(8 * width, 5)
        self.severity = nn.Linear(8 * width, 5)
        self.detail = nn.Conv2d(width, 16, 3, padding=1)
        self.context = nn.Conv2d(4 * width, 16, 1)
        self.mask = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits: stress and severity (batch, 5), mask (batch, 3, height / 2, width / 2)."""
        fine = self.stage1(F.relu(self.bn(self.stem(x))))
        coarse = self.stage3(self.stage2(fine))
        pooled = self.stage4(coarse).mean((2, 3))
        context = F.interpolate(self.context(coarse), scale_factor=4.0, mode="bilinear")
        mask = self.mask(F.relu(self.detail(fine) + context))
        return {"stress": self.stress(pooled), "severity": self.severity(pooled), "mask": mask}


def coffee_resnet(width: int = 16) -> CoffeeResNet:
    """The network with fresh weights."""
    return CoffeeResNet(width)


@cache
def leaves(split: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Images (n, 3, 32, 64) in 0..1 and the targets of one split (train, val, test), all in memory."""
    folder = Path(os.environ.get("COFFEE_LEAVES", "coffee-leaves"))
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    shrink = v2.Resize([HEIGHT, WIDTH], antialias=True)
    images = torch.stack([shrink(read_image(str(folder / row["image"]), ImageReadMode.RGB)) for row in rows])
    masks = torch.full((len(rows), HEIGHT // 2, WIDTH // 2), MISSING, dtype=torch.long)
    for place, row in enumerate(rows):
        if row["mask"]:
            labels = read_image(str(folder / row["mask"]), ImageReadMode.GRAY).float()[None]
            masks[place] = F.interpolate(labels, size=(HEIGHT // 2, WIDTH // 2), mode="nearest")[0, 0].long()
    targets = {name: torch.tensor([int(row[name]) for row in rows]) for name in ("stress", "severity")}
    return images.float() / 255, {**targets, "mask": masks}


class Leaves(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """One split; training may mirror the leaves."""

    def __init__(self, split: str) -> None:
        self.images, self.targets = leaves(split)
        self.labels = self.targets["stress"].tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.images[index], {name: values[index] for name, values in self.targets.items()}


def tasks() -> tuple[Task, ...]:
    """All three, equally weighted in training."""
    return (
        Task("stress", output="stress", target="stress", loss="cross_entropy", metric="top1"),
        Task("severity", output="severity", target="severity", loss="cross_entropy", metric="top1"),
        Task("mask", output="mask", target="mask", loss="cross_entropy", metric="miou"),
    )


def train_data() -> Leaves:
    """1,354 leaves, 392 with masks."""
    return Leaves("train")


def calib_data() -> Leaves:
    """173 leaves that training does not see, 49 with masks."""
    return Leaves("val")


def test_data() -> Leaves:
    """158 leaves, 49 with masks."""
    return Leaves("test")
