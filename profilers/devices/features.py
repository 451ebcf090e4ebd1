"""What of a layer costs time: fourteen numbers per layer, and their sum per network.

    time of a network = sum over features of (seconds per unit on the device) x (units in the network)

Compute is counted in million MACs by the kind of kernel that mobile runtimes have, with a penalty for few channels:
3x3 stride 1 (Winograd) x (1 + 30/in + 30/out), other dense convolutions x (1 + 10 groups/min(in, out)). Memory is in
megabytes (single precision): activations of convolutions; of layers that compute exponentials (swish, softmax, LRN);
of layers that only move numbers (concat, slice, shuffle); of other layers; weights. Overhead is the number of layers.
The constants 30 and 10 are the same for all devices; they were chosen by cross-validation over networks.

A price of its own for widths that are no multiple of 4 makes the cross-validation better (8.6 % median, 28 % one in
ten, networks left out) and decomposed networks, whose ranks are such widths, wrong: ResNet-18 at half of its MACs would
be 1.4 to 1.8 times slower than the original; ncnn, MNN and ONNX Runtime all measured 0.6 times. So there is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

FEATURES = (
    "3x3 convolution",
    "1x1 convolution",
    "other convolution",
    "depthwise 3x3",
    "depthwise, other",
    "fully connected",
    "grouped convolution",
    "activations of convolutions",
    "activations of exponentials",
    "activations that are moved",
    "activations of other layers",
    "weights",
    "overhead per convolution",
    "overhead per other layer",
)
COMPUTE = slice(0, 7)
MEMORY = slice(7, 12)
OVERHEAD = slice(12, 14)
BOUNDS = (("compute", COMPUTE), ("memory", MEMORY), ("overhead", OVERHEAD))
_ACTIVATIONS, _EXPONENTIALS, _MOVED, _OTHER, _WEIGHTS, _CONVOLUTIONS, _LAYERS = range(7, 14)

WINOGRAD_PENALTY = 30.0
CHANNEL_PENALTY = 10.0
WINOGRAD_LEAST_CHANNELS = 8

NO_COST = frozenset({"Split", "MemoryData", "PriorBox", "Noop", "Flatten", "Reshape"})
"""Layer types that mobile runtimes do not execute, or that only rename memory."""
EXPONENTIALS = frozenset({"Swish", "LRN", "Softmax", "Sigmoid", "HardSigmoid", "Gelu", "Erf", "Exp", "Tanh"})
MOVES = frozenset({"Concat", "Crop", "Slice", "ShuffleChannel", "Permute", "Interp", "Padding"})


@dataclass(frozen=True, slots=True)
class LayerRow:
    """What the features are read from; element counts, not bytes. `type` is what mobile runtimes call the layer."""

    type: str
    macs: int
    weights: int
    in_elements: int
    out_elements: int
    kernel: int = 0
    stride: int = 1
    groups: int = 1
    in_channels: int = 0
    out_channels: int = 0


def layer_features(layer: LayerRow) -> Vector:
    """The fourteen numbers of one layer, in the order of `FEATURES`: (14,)."""
    found = np.zeros(len(FEATURES))
    if layer.type in NO_COST:
        return found
    activations = 4e-6 * (layer.in_elements + layer.out_elements)
    if not layer.macs:
        kind = _EXPONENTIALS if layer.type in EXPONENTIALS else _MOVED if layer.type in MOVES else _OTHER
        found[kind], found[_LAYERS] = activations, 1.0
        return found
    index, penalty = _kernel(layer)
    found[index] = 1e-6 * layer.macs * penalty
    found[_ACTIVATIONS], found[_WEIGHTS], found[_CONVOLUTIONS] = activations, 4e-6 * layer.weights, 1.0
    return found


def _kernel(layer: LayerRow) -> tuple[int, float]:
    """(feature of the layer's kernel, penalty for few channels)."""
    inputs, outputs, groups = layer.in_channels, layer.out_channels, layer.groups
    if layer.type == "InnerProduct":
        return 5, 1.0
    if layer.type == "MatMul" or not inputs or not outputs:  # attention: a dense product without a weight
        return 1, 1.0
    if 1 < groups == outputs:
        return (3 if layer.kernel == 3 else 4), 1.0
    channels = 1 + CHANNEL_PENALTY * groups / min(inputs, outputs)
    if groups > 1:
        return 6, channels
    if (layer.kernel, layer.stride) == (3, 1) and inputs >= WINOGRAD_LEAST_CHANNELS:
        return 0, 1 + WINOGRAD_PENALTY * (1 / inputs + 1 / outputs)
    return (1 if (layer.kernel, layer.stride) == (1, 1) else 2), channels


def network_features(layers: Iterable[LayerRow]) -> Vector:
    """Sum over the layers of a network: (14,)."""
    return np.asarray(np.sum([layer_features(layer) for layer in layers], axis=0))
