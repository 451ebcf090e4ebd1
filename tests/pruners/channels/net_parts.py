"""What the nets of the channel tests are made of: bodies between a stem and a head, seeded random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A net, the kind of its input and the parameter ratio that specs/channels.md gives for 50 % of the units."""

    name: str
    build: Callable[[], nn.Module]
    ratio: float
    keep: float = 0.5


def c(i: int, o: int, **more: object) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=1, **more)  # type: ignore[arg-type]


class Net(nn.Module):
    """body(x) -> 24 maps -> mean -> Linear(24, 5); `parts` become submodules."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor], last: int = 24, **parts: object) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.fc = nn.Linear(last, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self, x)
        return self.fc(y.mean((2, 3)) if y.dim() == 4 else y.mean(1) if y.dim() == 3 else y)


def p(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.5)


def b(*shape: int) -> Tensor:
    return torch.randn(*shape)


class Tokens(nn.Module):
    """4x4 patches -> B x 16 x width tokens -> body -> token mean -> Linear."""

    def __init__(self, body: Callable[[Tokens, Tensor], Tensor], last: int, width: int = 32, **parts: object) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)
        self.fc = nn.Linear(last, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self, self.patch(x).flatten(2).transpose(1, 2))
        return self.fc(y.mean(1) if y.dim() == 3 else y)


class Outputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c0, self.c1, self.fc, self.aux = c(3, 16), c(16, 24), nn.Linear(24, 5), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> dict[str, object]:
        y = F.relu(self.c0(x))
        return {"logits": self.fc(F.relu(self.c1(y)).mean((2, 3))), "more": [self.aux(y.mean((2, 3)))]}


def separate_parts() -> dict[str, object]:
    return {name: nn.Linear(32, 32) for name in ("q", "k", "v", "proj")}


def make(case: Case, seed: int = 0) -> nn.Module:
    """The net of a case with random weights, where every vector and running statistic is random too."""
    torch.manual_seed(seed)
    net = case.build()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
        for name, buffer in net.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                buffer.uniform_(-0.5, 0.5)
    return net.eval()


def example() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)),)
