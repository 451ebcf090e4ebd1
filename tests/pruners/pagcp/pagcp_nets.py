"""Tiny networks with two heads, and data that they are judged on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruners.pagcp import TaskData

SHAPE = (1, 6, 6)
Batch = tuple[Tensor, Mapping[str, Tensor]]


class TwoHeads(nn.Module):
    """A residual trunk; a classifying head with a hidden layer, and a dense one."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.back = nn.Conv2d(width, width, 3, padding=1)
        self.hidden = nn.Linear(width, 5)
        self.label = nn.Linear(5, 3)
        self.map = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.bn1(self.stem(x)))
        y = self.back(F.relu(self.bn2(self.inner(x))))
        y += x
        x = F.relu(y)
        return {"label": self.label(F.relu(self.hidden(x.mean((2, 3))))), "map": self.map(x)}


def two_heads(seed: int = 0, width: int = 6) -> TwoHeads:
    """Random weights, batch-norm statistics of its own data."""
    torch.manual_seed(seed)
    net = TwoHeads(width)
    net.train()
    for _ in range(20):
        net(torch.randn(32, *SHAPE))
    return net.eval()


def losses(outputs: Any, batch: Any) -> dict[str, Tensor]:
    """Cross entropy of both heads; the dense one has no target where its first pixel is -1."""
    target = batch[1]
    dense = F.cross_entropy(outputs["map"], target["map"].clamp(min=0), reduction="none").mean((1, 2))
    known = target["map"][:, 0, 0] >= 0
    return {
        "label": F.cross_entropy(outputs["label"], target["label"], reduction="none"),
        "map": torch.where(known, dense, torch.full_like(dense, torch.nan)),
    }


def two_head_data(net: nn.Module, samples: int = 96, batch: int = 24, seed: int = 1, missing: int = 0) -> TaskData:
    """Inputs with the network's own decisions as targets, a tenth of them wrong; `missing` samples have no map."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, *SHAPE, generator=generator)
    with torch.no_grad():
        outputs = net(x)
    target = {name: value.argmax(1) for name, value in outputs.items()}
    wrong = torch.rand(samples, generator=generator) < 0.1
    target["label"] = torch.where(wrong, (target["label"] + 1) % 3, target["label"])
    target["map"] = torch.where(wrong[:, None, None], 1 - target["map"], target["map"])
    target["map"][:missing] = -1
    batches = [
        (x[at : at + batch], {name: value[at : at + batch] for name, value in target.items()})
        for at in range(0, samples, batch)
    ]
    return TaskData(batches, lambda model, item: model(item[0]), losses)


class Parallel(nn.Module):
    """Hidden channel c carries scale_c * x to output c alone, so that every channel's harm adds up exactly."""

    def __init__(self, scales: tuple[float, ...]) -> None:
        super().__init__()
        self.first = nn.Linear(1, len(scales), bias=False)
        self.second = nn.Linear(len(scales), len(scales), bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor(scales)[:, None])
            self.second.weight.copy_(torch.eye(len(scales)))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def parallel_data(net: Parallel, samples: int = 40, residual: float = 0.1) -> TaskData:
    """Targets are the outputs times 1 + residual; the loss is the squared distance."""
    x = torch.randn(samples, 1, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        target = net(x) * (1 + residual)
    batches = [(x[at : at + 10], target[at : at + 10]) for at in range(0, samples, 10)]
    return TaskData(batches, lambda model, item: model(item[0]), lambda y, item: {"mse": (y - item[1]).square().sum(1)})
