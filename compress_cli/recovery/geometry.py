"""The matrix that a layer multiplies by its weight: im2col of every kind of layer, as rows and columns.

Every supported operator is y = p W per group: p holds one row per output position (the patch, channel-major like
`weight.flatten(1)`), W one column per output channel. A transposed convolution is a convolution of the input with
zeros between its pixels and a flipped kernel, so it has the same form.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["linear", "conv", "transposed"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of one operator; spatial tuples are empty for a linear layer.

    Attributes:
        kind: which operator.
        groups: of the convolution; 1 for linear layers.
        kernel, stride, dilation: per spatial axis.
        padding: (before, after) per spatial axis.
        output_padding: per spatial axis, of transposed convolutions.
    """

    kind: Kind
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()

    @property
    def channel_axis(self) -> int:
        """The axis of the channels in input and output."""
        return -1 if self.kind == "linear" else -1 - len(self.kernel)

    @property
    def area(self) -> int:
        """Columns of one input channel."""
        return prod(self.kernel)

    def matrix(self, weight: Tensor) -> Tensor:
        """Bring a weight into the form (groups, columns, outputs per group); the inverse of `weight`."""
        if self.kind == "transposed":
            flipped = weight.flip(tuple(range(2, weight.dim())))  # (C, O/g, kernel)
            blocks = flipped.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
            return blocks.transpose(2, 3).flatten(1, 2)  # (g, C/g * K, O/g)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).mT

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Bring (groups, columns, outputs per group) into the shape of a stored weight."""
        if self.kind == "transposed":
            blocks = matrix.reshape(self.groups, like.shape[0] // self.groups, -1, like.shape[1]).transpose(2, 3)
            return blocks.reshape(like.shape).flip(tuple(range(2, like.dim())))
        return matrix.mT.reshape(like.shape)

    def windows(self, x: Tensor) -> Tensor:
        """Return a view (batch, positions..., channels, kernel...) of all patches of an input."""
        if self.kind == "linear":
            return x
        axes = len(self.kernel)
        if x.dim() == axes + 1:  # a single image without a batch axis
            x = x.unsqueeze(0)
        x = self._spread(x) if self.kind == "transposed" else F.pad(x, _flat(self.padding))
        strides = (1,) * axes if self.kind == "transposed" else self.stride
        for axis in range(axes):
            extent = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            x = x.unfold(2 + axis, extent, strides[axis])[..., :: self.dilation[axis]]
        # (batch, channels, positions..., kernel...)
        return x.permute(0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))

    def _spread(self, x: Tensor) -> Tensor:
        """Put stride - 1 zeros between the pixels and pad as the equivalent convolution does."""
        sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], self.stride, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        inner: Tensor = spread
        for axis, step in enumerate(self.stride):
            inner = inner[(slice(None),) * (2 + axis) + (slice(None, None, step),)]
        inner.copy_(x)
        reach = [spacing * (size - 1) for spacing, size in zip(self.dilation, self.kernel, strict=True)]
        pads = [
            (far - before, far - after + extra)
            for far, (before, after), extra in zip(reach, self.padding, self.output_padding, strict=True)
        ]
        return F.pad(spread, _flat(tuple(pads)))

    def places(self, windows: Tensor) -> torch.Size:
        """Sizes (batch, positions...) of the axes over which patches are counted."""
        return windows.shape[:-1] if self.kind == "linear" else windows.shape[: 1 + len(self.kernel)]

    def rows(self, windows: Tensor, chosen: Tensor | None) -> Tensor:
        """Return patches (groups, rows, columns) of all positions, or of chosen ones.

        Args:
            windows: from `windows`.
            chosen: flat indices over (batch, positions...), or None.
        """
        places = self.places(windows)
        picked = (
            windows.reshape(-1, *windows.shape[len(places) :]) if chosen is None else _pick(windows, places, chosen)
        )
        flat = picked.reshape(picked.shape[0], self.groups, -1)
        return flat.transpose(0, 1)

    def outputs(self, y: Tensor, chosen: Tensor | None) -> Tensor:
        """Return output values (groups, rows, outputs per group) in the order of `rows`."""
        axes = len(self.kernel)
        if self.kind != "linear" and y.dim() == axes + 1:
            y = y.unsqueeze(0)
        last = y if self.kind == "linear" else y.movedim(1, -1)
        flat = last.reshape(-1, last.shape[-1]) if chosen is None else _pick(last, last.shape[:-1], chosen)
        return flat.reshape(flat.shape[0], self.groups, -1).transpose(0, 1)


def _flat(pads: tuple[tuple[int, int], ...]) -> list[int]:
    """Paddings in the order of `torch.nn.functional.pad`, last axis first."""
    return [side for pair in reversed(pads) for side in pair]


def _pick(values: Tensor, places: torch.Size, chosen: Tensor) -> Tensor:
    """Gather positions without making a copy of all of them."""
    return values[torch.unravel_index(chosen, tuple(places))]
