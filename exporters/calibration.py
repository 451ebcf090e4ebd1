"""What calibration inputs say about the weights of an ONNX file: which elements matter, and by how much.

For y = W x the squared output error of an error dW is E|dW x|^2. With uncorrelated inputs that is the sum over elements
of dW^2 E[x_j^2]: the energy of the input that an element multiplies is its importance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TypeProto, helper

from exporters import files
from exporters.errors import BadOnnxFile, first_line
from exporters.feeds import Feed
from exporters.weights import Weight, weights

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Use:
    """One product: `weight` multiplies the value `data`."""

    node: NodeProto
    weight: str
    data: str


def importance(source: Path, feeds: Sequence[Feed]) -> dict[str, Array]:
    """Mean squared input of every weight element that feeds a convolution or product, in the weight's shape.

    Weights whose layout is not understood are left out.

    Raises:
        BadOnnxFile: the file cannot be read or run.
    """
    model = files.read(source)
    found = {weight.name: weight for weight in weights(model)[0] if weight.product}
    uses = [use for node in model.graph.node for use in _uses(node, found)]
    energies = _energies(model, source, uses, feeds)
    result: dict[str, Array] = {}
    for use in uses:
        spread = _spread(use.node, found[use.weight], energies[use.data])
        if spread is not None:
            result[use.weight] = result[use.weight] + spread if use.weight in result else spread
    return result


def _uses(node: NodeProto, found: dict[str, Weight]) -> list[_Use]:
    if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in found and node.input[0] not in found:
        return [_Use(node, node.input[1], node.input[0])]
    return []


def _energies(model: ModelProto, path: Path, uses: list[_Use], feeds: Sequence[Feed]) -> dict[str, Array]:
    """E[x^2] over everything but the channel axis (1 for images, the last one for rows) of each data value."""
    axes = {use.data: 1 if use.node.op_type == "Conv" else -1 for use in uses}
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    inner = [name for name in axes if name not in given]
    probe = ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(helper.make_value_info(name, TypeProto()) for name in inner)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        runner = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [value.name for value in runner.get_outputs()]
        total: dict[str, Array] = {}
        for feed in feeds:
            values = dict(zip(names, runner.run(None, dict(feed)), strict=True))
            for name, axis in axes.items():
                energy = _channel_energy(np.asarray(values.get(name, feed.get(name))), axis)
                total[name] = total.get(name, 0) + energy / len(feeds)
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise BadOnnxFile(path, f"ONNX Runtime fails on a calibration input: {first_line(error)}") from error
    return total


def _channel_energy(value: Array, axis: int) -> Array:
    others = tuple(place for place in range(value.ndim) if place != axis % value.ndim)
    energy: Array = np.mean(value.astype(np.float64) ** 2, axis=others)
    return energy


def _spread(node: NodeProto, weight: Weight, energy: Array) -> Array | None:
    """`energy` of the input channels laid out like the weight: each element gets that of the input it multiplies."""
    flags = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    shape = weight.array.shape
    if node.op_type == "Conv":  # weight: (out, in/groups, kernel...)
        groups = int(flags.get("group", 1))
        if len(energy) != groups * shape[1] or shape[0] % groups:
            return None
        rows = np.repeat(energy.reshape(groups, shape[1]), shape[0] // groups, axis=0)
        return np.broadcast_to(rows.reshape(*rows.shape, *[1] * (len(shape) - 2)), shape)
    if node.op_type == "Gemm" and flags.get("transA", 0):
        return None
    across = node.op_type == "MatMul" or not flags.get("transB", 0)  # weight: (.., in, out)
    size = shape[-2] if across and len(shape) > 1 else shape[-1]
    if len(energy) != size:
        return None
    return np.broadcast_to(energy[:, None] if across and len(shape) > 1 else energy, shape)
