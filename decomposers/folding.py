"""Folding a layer's weight into matrices, one per slice of input channels: shapes, costs and index order only.

Source: Liebenwein et al., "Compressing Neural Networks: Towards Determining the Optimal Layer-wise Decomposition",
NeurIPS 2021. A layer with f outputs, c inputs and kernel k1 x k2 is cut into k slices of c/k input channels; each
slice is folded into a matrix whose rows hold the outputs and whose columns hold the inputs. Each kernel axis goes to
one side: the columns (the encoder spans it) or the rows (the decoder spans it).

    scheme 0: f x (c K)      scheme 1: (f k1) x (c k2)      scheme 2: (f k2) x (c k1)      scheme 3: (f K) x c

Channels are sliced first and folded after, so a slice is what the grouped encoder will see. A layer that is grouped
itself (G groups) is G independent layers: every formula below holds with rows f/G and slices of c/(G k) channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor

SCHEMES: tuple[int, ...] = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The sizes of one convolution or linear layer.

    Attributes:
        out_channels: f.
        in_channels: c.
        kernel: (k1, k2, ...); empty for a linear layer.
        groups: G of the layer itself, not of its decomposition.
        transposed: whether it is a transposed convolution, whose weight is stored input first.
    """

    out_channels: int
    in_channels: int
    kernel: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    @property
    def kernel_size(self) -> int:
        """K, the number of taps."""
        return prod(self.kernel)

    @property
    def weights(self) -> int:
        """Number of weights of the dense layer."""
        return self.out_channels * self.in_channels // self.groups * self.kernel_size

    @property
    def slice_width(self) -> int:
        """Input channels per group of the layer, the number that k must divide."""
        return self.in_channels // self.groups


@dataclass(frozen=True, slots=True)
class Form:
    """How one layer is decomposed: folding scheme, k slices of input channels, rank j per slice."""

    scheme: int
    groups: int
    rank: int


def decoder_axes(shape: LayerShape, scheme: int) -> tuple[int, ...]:
    """Return the kernel axes that the decoder spans; the encoder spans the others, and every axis of one tap."""
    every = tuple(range(len(shape.kernel)))
    wanted = {0: (), 1: (0,), 2: (1,), 3: every}[scheme]
    return tuple(axis for axis in wanted if shape.kernel[axis] > 1)


def encoder_axes(shape: LayerShape, scheme: int) -> tuple[int, ...]:
    """Return the kernel axes that the encoder spans."""
    decoder = decoder_axes(shape, scheme)
    return tuple(axis for axis in range(len(shape.kernel)) if axis not in decoder)


def distinct_schemes(shape: LayerShape, allowed: tuple[int, ...] = SCHEMES) -> tuple[int, ...]:
    """Return the allowed schemes that differ for this layer; 1x1 kernels and linear layers have one only.

    Schemes 1 and 2 need two kernel axes and are not offered for transposed convolutions.

    Example:
        >>> distinct_schemes(LayerShape(8, 4, (1, 3)))
        (0, 2)
    """
    two_axes = len(shape.kernel) == 2 and not shape.transposed
    found: dict[tuple[int, ...], int] = {}
    for scheme in SCHEMES:
        if scheme in (1, 2) and not two_axes:
            continue
        if scheme in allowed:
            found.setdefault(decoder_axes(shape, scheme), scheme)
    return tuple(sorted(found.values()))


def row_taps(shape: LayerShape, scheme: int) -> int:
    """Return k_out, the number of taps on the decoder's side."""
    return prod(shape.kernel[axis] for axis in decoder_axes(shape, scheme))


def column_taps(shape: LayerShape, scheme: int) -> int:
    """Return k_in, the number of taps on the encoder's side."""
    return prod(shape.kernel[axis] for axis in encoder_axes(shape, scheme))


def divisors(number: int, limit: int | None = None) -> tuple[int, ...]:
    """Return the divisors of a number in ascending order, up to a limit.

    Example:
        >>> divisors(12, 4)
        (1, 2, 3, 4)
    """
    top = number if limit is None else min(number, limit)
    return tuple(k for k in range(1, top + 1) if number % k == 0)


def matrix_sizes(shape: LayerShape, scheme: int, groups: int) -> tuple[int, int]:
    """Return (rows, columns) of each folded slice: f/G k_out and c/(G k) k_in."""
    rows = shape.out_channels // shape.groups * row_taps(shape, scheme)
    return rows, shape.slice_width // groups * column_taps(shape, scheme)


def rank_limit(shape: LayerShape, scheme: int, groups: int) -> int:
    """Return the full rank of a slice, the largest j."""
    return min(matrix_sizes(shape, scheme, groups))


def half_weights(shape: LayerShape, form: Form) -> tuple[int, int]:
    """Return the weights of the encoder, j c k_in, and of the decoder, j k f k_out."""
    encoder = form.rank * shape.in_channels * column_taps(shape, form.scheme)
    decoder = form.rank * form.groups * shape.out_channels * row_taps(shape, form.scheme)
    return encoder, decoder


def factored_weights(shape: LayerShape, form: Form) -> int:
    """Return the number of weights of both halves.

    Example:
        >>> factored_weights(LayerShape(64, 64, (3, 3)), Form(0, 32, 5))
        13120
    """
    return sum(half_weights(shape, form))


def blocks_of(weight: Tensor, shape: LayerShape) -> Tensor:
    """View a weight as (G, f/G, c/G, *kernel), whatever the layer's own order is."""
    inputs, outputs = shape.slice_width, shape.out_channels // shape.groups
    if shape.transposed:
        return weight.reshape(shape.groups, inputs, outputs, *shape.kernel).transpose(1, 2)
    return weight.reshape(shape.groups, outputs, inputs, *shape.kernel)


def weight_from_blocks(blocks: Tensor, shape: LayerShape) -> Tensor:
    """Undo `blocks_of`: back to the shape in which the layer stores its weight."""
    if shape.transposed:
        return blocks.transpose(1, 2).reshape(shape.in_channels, -1, *shape.kernel)
    return blocks.reshape(shape.out_channels, -1, *shape.kernel)


def _fold_order(shape: LayerShape, scheme: int) -> list[int]:
    """Return the axis order that turns (G, f/G, k, c/(G k), *kernel) into (G, k, rows..., columns...)."""
    rows = [4 + axis for axis in decoder_axes(shape, scheme)]
    columns = [4 + axis for axis in encoder_axes(shape, scheme)]
    return [0, 2, 1, *rows, 3, *columns]


def fold(weight: Tensor, shape: LayerShape, scheme: int, groups: int) -> Tensor:
    """Slice a weight's input channels and fold each slice into a matrix.

    Args:
        weight: as the layer stores it: (f, c/G, *kernel), (c, f/G, *kernel) if transposed, (f, c) for linear.
        shape: the layer's sizes.
        scheme: 0 to 3.
        groups: k, which divides c/G.

    Returns:
        (G k, rows, columns), slices of the same layer group next to each other.

    Raises:
        ValueError: k does not divide c/G.
    """
    if shape.slice_width % groups:
        raise ValueError(f"{groups} slices do not divide {shape.slice_width} input channels")
    width = shape.slice_width // groups
    sliced = blocks_of(weight, shape).reshape(shape.groups, -1, groups, width, *shape.kernel)
    rows, columns = matrix_sizes(shape, scheme, groups)
    return sliced.permute(_fold_order(shape, scheme)).reshape(shape.groups * groups, rows, columns)


def unfold(matrices: Tensor, shape: LayerShape, scheme: int, groups: int) -> Tensor:
    """Undo `fold`: (G k, rows, columns) back to the weight as the layer stores it."""
    order = _fold_order(shape, scheme)
    sizes = (
        shape.groups,
        shape.out_channels // shape.groups,
        groups,
        shape.slice_width // groups,
        *shape.kernel,
    )
    folded = matrices.reshape([sizes[axis] for axis in order])
    inverse = [order.index(axis) for axis in range(len(order))]
    return weight_from_blocks(folded.permute(inverse).flatten(2, 3), shape)
