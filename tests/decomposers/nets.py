"""Small networks that are hard to decompose, and the CIFAR ResNets with their real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples import cifar_resnet as factory


def cifar_resnet(depth: int, data: Path) -> nn.Module:
    """The trained network of the checkpoint file."""
    file = data / "checkpoints" / f"cifar10-resnet{depth}.th"
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    model: nn.Module = getattr(factory, f"resnet{depth}")()
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()


class Mixed(nn.Module):
    """Every kind of layer that becomes two, in a chain, with a depthwise one in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding="valid")
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=2)
        self.reflect = nn.Conv2d(24, 16, 3, padding="same", padding_mode="reflect", bias=False)
        self.up = nn.ConvTranspose2d(16, 12, 4, stride=2, padding=1)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        x = functional.relu(self.grouped(self.depthwise(x)))
        x = functional.relu(self.up(self.reflect(x)))
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One module under two names, and one weight in two modules with biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.again = self.middle
        self.left = nn.Conv2d(16, 16, 3, padding=1)
        self.right = nn.Conv2d(16, 16, 3, padding=1)
        self.right.weight = self.left.weight
        self.stages = nn.ModuleList([self.left, self.right])
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.again(torch.relu(self.middle(torch.relu(self.first(x))))))
        x = torch.relu(self.left(x)) + torch.relu(self.stages[1](x[:, :, ::2, ::2]).mean((2, 3), keepdim=True))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """An attention block around linear layers, one of which sees (batch, tokens, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up = nn.Linear(16, 64)
        self.down = nn.Linear(64, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        tokens = tokens + self.down(functional.gelu(self.up(tokens)))
        return self.head(tokens.mean(1))


def seeded(model: nn.Module) -> nn.Module:
    """Fill every parameter from one generator, so that a test does not depend on what ran before it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def images(count: int, *size: int, seed: int = 3) -> Tensor:
    """Random inputs of (count, *size)."""
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))


def counted_macs(model: nn.Module, *inputs: Any) -> int:
    """MACs by torch's own counter, an oracle that shares no code with ours."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() // 2
