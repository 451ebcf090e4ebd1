"""Two thinner layers for one: the factors of each slice, the modules that hold them, and the proof that they fit.

Each folded slice W_g = U_g S_g V_g' is cut at rank j and split evenly: decoder D_g = U_g S_g^1/2, encoder E_g =
S_g^1/2 V_g' (Eckart-Young-Mirsky: no rank-j matrix is nearer to W_g). The encoder convolution keeps the slices apart
(groups = G k, no bias); the decoder mixes them and carries the bias. Nothing stands between the two, so the pair
computes exactly what one dense layer with the weight [D_1 E_1 ... D_k E_k] computes; `prove_layer` checks that.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decomposers.errors import BadWeights, ProofFailed
from decomposers.folding import (
    Form,
    LayerShape,
    decoder_axes,
    encoder_axes,
    fold,
    matrix_sizes,
    unfold,
)
from decomposers.spectra import CHUNK, HUGE_ROWS, gram

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SUPPORTED: tuple[type[nn.Module], ...] = (nn.Linear, *CONVOLUTIONS.values(), *TRANSPOSED.values())
PROOF_TOLERANCE = 1e-9
PROOF_ROWS = 24
"""Positions along each axis that a proof computes, apart from those near the borders."""


@dataclass(frozen=True, slots=True)
class Factors:
    """One layer's factors.

    Attributes:
        encoder: (G k, j, columns).
        decoder: (G k, rows, j).
    """

    encoder: Tensor
    decoder: Tensor

    def product(self) -> Tensor:
        """Return the folded approximations D_g E_g: (G k, rows, columns)."""
        return self.decoder @ self.encoder


def shape_of(layer: nn.Module) -> LayerShape:
    """Read the sizes of a supported layer.

    Raises:
        TypeError: not a convolution, transposed convolution or linear layer.
    """
    if isinstance(layer, nn.Linear):
        return LayerShape(layer.out_features, layer.in_features)
    if isinstance(layer, (*CONVOLUTIONS.values(), *TRANSPOSED.values())):
        found: Any = layer
        kernel = tuple(int(size) for size in found.kernel_size)
        return LayerShape(found.out_channels, found.in_channels, kernel, found.groups, bool(found.transposed))
    raise TypeError(f"{type(layer).__name__} is neither a convolution nor a linear layer")


def svd_factors(weight: Tensor, shape: LayerShape, form: Form, name: str = "weight") -> Factors:
    """Cut the singular value decomposition of every slice at the form's rank, in float64 (huge ones in float32).

    The eigenvectors of the smaller Gram matrix give one side, a product with the slice the other, so the cost is
    that of the smaller side. In float32 the vectors are orthonormal to 1e-5, which is all that the product needs.

    Args:
        weight: as the layer stores it.
        shape: the layer's sizes.
        form: scheme, slices and rank.
        name: used in the error.

    Raises:
        BadWeights: not finite.
    """
    if not bool(torch.isfinite(weight).all()):
        raise BadWeights(name, "holds values that are not finite")
    matrices = fold(weight.detach(), shape, form.scheme, form.groups)  # (G k, rows, columns)
    wide = matrices.shape[1] <= matrices.shape[2]
    side = matrices if wide else matrices.mT
    huge = side.shape[1] > HUGE_ROWS and side.dtype != torch.float64
    values, vectors = torch.linalg.eigh(gram(side, torch.float32 if huge else torch.float64))
    basis = vectors.flip(-1)[..., : form.rank]  # (G k, small side, j), largest first
    least = values[..., -1:].clamp(min=0) * torch.finfo(values.dtype).eps  # what is below it is rounding
    scale = values.flip(-1)[..., : form.rank].maximum(least).pow(0.25)  # S^1/2 of each slice
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    near, far = basis * scale.unsqueeze(-2), inverse.unsqueeze(-1) * _project(basis, side)
    return Factors(far, near) if wide else Factors(near.mT.contiguous(), far.mT.contiguous())


def _project(basis: Tensor, side: Tensor) -> Tensor:
    """Return basis' side in the type of the basis, converting some columns of a large matrix at a time."""
    width = max(1, CHUNK // (side.shape[0] * side.shape[1]))
    parts = [basis.mT @ side[..., start : start + width].to(basis.dtype) for start in range(0, side.shape[2], width)]
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def _per_axis(value: Any, axes: tuple[int, ...], count: int, neutral: int) -> tuple[int, ...]:
    """Keep a per-axis argument on some axes and put its neutral value on the others."""
    values = (value,) * count if isinstance(value, int) else tuple(value)
    return tuple(values[axis] if axis in axes else neutral for axis in range(count))


def _half_arguments(layer: Any, axes: tuple[int, ...]) -> dict[str, Any]:
    """Return kernel, stride, padding and dilation of the half that spans `axes`.

    Padding by name stays a name: `same` is asymmetric for even kernels, and pads nothing along an axis of one tap.
    """
    count = len(layer.kernel_size)
    named = isinstance(layer.padding, str)
    padding = layer.padding if named else _per_axis(layer.padding, axes, count, 0)
    arguments = {
        "kernel_size": _per_axis(layer.kernel_size, axes, count, 1),
        "stride": _per_axis(layer.stride, axes, count, 1),
        "padding": padding,
        "dilation": _per_axis(layer.dilation, axes, count, 1),
        "padding_mode": layer.padding_mode if axes else "zeros",
    }
    if axes and layer.transposed:
        arguments["output_padding"] = _per_axis(layer.output_padding, axes, count, 0)
    return arguments


def _convolution_pair(layer: Any, shape: LayerShape, form: Form, bias: bool) -> nn.Sequential:
    count, inner = len(shape.kernel), shape.groups * form.groups * form.rank
    halves = []
    for axes, inputs, outputs, groups, with_bias in (
        (encoder_axes(shape, form.scheme), shape.in_channels, inner, shape.groups * form.groups, False),
        (decoder_axes(shape, form.scheme), inner, shape.out_channels, shape.groups, bias),
    ):
        transposed = shape.transposed and bool(axes)
        kind: Any = (TRANSPOSED if transposed else CONVOLUTIONS)[count]
        arguments = _half_arguments(layer, axes)
        halves.append(kind(inputs, outputs, groups=groups, bias=with_bias, device="meta", **arguments))
    return nn.Sequential(*halves)


def _linear_pair(shape: LayerShape, form: Form, bias: bool) -> nn.Sequential:
    """Two linear layers; with k > 1 a grouped convolution over one position, which needs inputs of (batch, c)."""
    inner = form.groups * form.rank
    decoder = nn.Linear(inner, shape.out_channels, bias=bias, device="meta")
    if form.groups == 1:
        return nn.Sequential(nn.Linear(shape.in_channels, inner, bias=False, device="meta"), decoder)
    encoder = nn.Conv1d(shape.in_channels, inner, 1, groups=form.groups, bias=False, device="meta")
    return nn.Sequential(nn.Unflatten(-1, (shape.in_channels, 1)), encoder, nn.Flatten(-2), decoder)


def build_pair(layer: nn.Module, form: Form, bias: bool) -> nn.Sequential:
    """Make the two layers that replace one, with undefined weights, on the layer's device and in its dtype.

    Draws no random numbers, and works on the meta device. A bias that the layer has is handed over, not copied, so
    it stays shared with whatever shares it.

    Args:
        layer: a supported layer.
        form: scheme, slices and rank.
        bias: whether the decoder carries a bias.
    """
    shape = shape_of(layer)
    linear = isinstance(layer, nn.Linear)
    pair = _linear_pair(shape, form, bias) if linear else _convolution_pair(layer, shape, form, bias)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    pair = pair.to(weight.dtype).to_empty(device=weight.device).train(layer.training)
    own: Any = layer.bias
    if bias and own is not None:
        halves(pair)[1].bias = own
    elif bias:
        nn.init.zeros_(halves(pair)[1].bias)
    for half in halves(pair):
        half.weight.requires_grad_(weight.requires_grad)
    return pair


def halves(pair: nn.Sequential) -> tuple[Any, Any]:
    """Return encoder and decoder of a replaced layer."""
    found = [part for part in pair if isinstance(part, SUPPORTED)]
    if len(found) != 2:
        raise TypeError(f"not a factored layer: {len(found)} layers with weights instead of 2")
    return found[0], found[1]


def _encoder_weight(encoder: Tensor, shape: LayerShape, form: Form, like: Tensor) -> Tensor:
    """Bring (G k, j, columns) into the encoder's own order."""
    axes = encoder_axes(shape, form.scheme)
    taps = [shape.kernel[axis] if axis in axes else 1 for axis in range(len(shape.kernel))]
    weight = encoder.reshape(*encoder.shape[:2], shape.slice_width // form.groups, *taps)  # (G k, j, c/(G k), taps)
    if shape.transposed and axes:
        return weight.transpose(1, 2).reshape(like.shape)
    return weight.reshape(like.shape)


def _decoder_weight(decoder: Tensor, shape: LayerShape, form: Form, like: Tensor) -> Tensor:
    """Bring (G k, rows, j) into the decoder's own order."""
    axes = decoder_axes(shape, form.scheme)
    taps = [shape.kernel[axis] if axis in axes else 1 for axis in range(len(shape.kernel))]
    outputs = shape.out_channels // shape.groups
    blocks = decoder.reshape(shape.groups, form.groups, outputs, *taps, form.rank)
    last = blocks.ndim - 1
    middle = list(range(3, last))
    order = (0, 1, last, 2, *middle) if shape.transposed and axes else (0, 2, 1, last, *middle)
    return blocks.permute(order).reshape(like.shape)


def write_factors(pair: nn.Sequential, shape: LayerShape, form: Form, factors: Factors) -> None:
    """Put factors into a pair's weights, cast to their dtype."""
    encoder, decoder = halves(pair)
    with torch.no_grad():
        encoder.weight.copy_(_encoder_weight(factors.encoder, shape, form, encoder.weight))
        decoder.weight.copy_(_decoder_weight(factors.decoder, shape, form, decoder.weight))


def read_factors(pair: nn.Sequential, shape: LayerShape, form: Form) -> Factors:
    """Read the factors back from a pair's weights, in float64."""
    encoder, decoder = (half.weight.detach().double() for half in halves(pair))
    rows, columns = matrix_sizes(shape, form.scheme, form.groups)
    slices = shape.groups * form.groups
    if shape.transposed and encoder_axes(shape, form.scheme):
        width = shape.slice_width // form.groups
        encoder = encoder.reshape(slices, width, form.rank, -1).transpose(1, 2)
    outputs = shape.out_channels // shape.groups
    if shape.transposed and decoder_axes(shape, form.scheme):
        mixed = decoder.reshape(shape.groups, form.groups, form.rank, outputs, -1).permute(0, 1, 3, 4, 2)
    else:
        mixed = decoder.reshape(shape.groups, outputs, form.groups, form.rank, -1).permute(0, 2, 1, 4, 3)
    return Factors(encoder.reshape(slices, form.rank, columns), mixed.reshape(slices, rows, form.rank))


def reconstruct(factors: Factors, shape: LayerShape, form: Form) -> Tensor:
    """Return the dense weight that the factors stand for, as the layer stores it."""
    return unfold(factors.product(), shape, form.scheme, form.groups)


def dense_twin(layer: nn.Module, pair: nn.Sequential, form: Form) -> nn.Module:
    """Return a float64 copy of the original layer with the reconstructed weight and the decoder's bias."""
    twin: Any = copy.deepcopy(layer).double()
    shape = shape_of(layer)
    with torch.no_grad():
        twin.weight = nn.Parameter(reconstruct(read_factors(pair, shape, form), shape, form))
    bias = halves(pair)[1].bias
    twin.bias = None if bias is None else nn.Parameter(bias.detach().double())
    result: nn.Module = twin
    return result


def _proof_size(layer: Any, input_size: tuple[int, ...]) -> tuple[int, ...]:
    """Shrink an input where positions repeat: a layer does the same at each, so some of them show as much as all."""
    axes = len(shape_of(layer).kernel)
    if not axes:
        return (*(min(size, PROOF_ROWS) for size in input_size[:-1]), input_size[-1])
    extents = zip(input_size[-axes:], layer.kernel_size, layer.dilation, strict=True)
    return (*input_size[:-axes], *(min(size, PROOF_ROWS + 2 * taps * step) for size, taps, step in extents))


def prove_layer(
    layer: nn.Module, pair: nn.Sequential, form: Form, input_size: tuple[int, ...], name: str = "layer"
) -> float:
    """Compare a pair with the dense layer of the reconstructed weight, in float64, on a fixed random input.

    Args:
        layer: the original layer, which gives stride, padding and dilation; its weight is not used.
        pair: what replaced it.
        form: how it was replaced.
        input_size: size of the input, batch included; of large ones a part.
        name: used in the error.

    Returns:
        The largest difference relative to the largest output.

    Raises:
        ProofFailed: above 1e-9.
    """
    generator = torch.Generator().manual_seed(0)
    device = halves(pair)[0].weight.device
    sample = torch.randn(_proof_size(layer, input_size), generator=generator, dtype=torch.float64).to(device)
    with torch.no_grad():
        expected: Tensor = dense_twin(layer, pair, form)(sample)
        found: Tensor = copy.deepcopy(pair).double()(sample)
    if found.shape != expected.shape:
        raise ProofFailed(name, float("inf"), PROOF_TOLERANCE)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    if not difference <= PROOF_TOLERANCE:
        raise ProofFailed(name, difference, PROOF_TOLERANCE)
    return difference
