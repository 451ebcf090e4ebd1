"""Tiny networks with everything that makes recovery hard, and images for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def images(count: int = 60, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    """Smooth random images: neighbours resemble each other, as in pictures."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, size // 2, size // 2, generator=g)
    return nn.functional.interpolate(coarse, size=size, mode="bilinear") + 0.3 * torch.randn(
        count, channels, size, size, generator=g
    )


def randomise(net: nn.Module, seed: int = 1) -> nn.Module:
    """Give every parameter and running statistic a value of its own."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            if tensor.dim() > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=g) / tensor[0].numel() ** 0.5)
            elif name.endswith("weight"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=g))
            else:
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=g))
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=g))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=g))
    return net.eval()


class Residual(nn.Module):
    """A stem, two residual blocks, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList(_Block(8) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return torch.relu_(y)


class Kinds(nn.Module):
    """Depthwise, grouped, dilated and transposed convolutions, a shared layer, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 6, 3, padding=1, groups=3)
        self.grouped = nn.Conv2d(6, 8, 3, padding=1, groups=2)
        self.shared = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False)
        self.up_norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.grouped(torch.relu(self.depthwise(x))))
        x = torch.relu(self.shared(torch.relu(self.shared(x))))
        x = torch.relu(self.up_norm(self.up(x)))
        return self.head(x.mean((2, 3))), x


class Attention(nn.Module):
    """Patches, a pre-norm attention block with layer scale, and an MLP block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.scale = nn.Parameter(torch.ones(16))
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.Dropout(0.1))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        y = self.norm1(x)
        x = x + self.scale * self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(1))


def prune_(net: nn.Module, sparsity: float) -> None:
    """Zero the smallest weights of every tensor with two or more dimensions."""
    with torch.no_grad():
        for tensor in net.parameters():
            if tensor.dim() > 1:
                cut = tensor.abs().flatten().kthvalue(max(int(sparsity * tensor.numel()), 1)).values
                tensor.masked_fill_(tensor.abs() <= cut, 0.0)
