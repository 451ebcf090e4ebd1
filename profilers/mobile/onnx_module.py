"""A plain ONNX graph as a PyTorch module, for converters that start from PyTorch.

The operators are those of vision networks after ONNX Runtime's basic optimisations, with fixed sizes; anything else is
refused by name. Meaning of the operators: https://onnx.ai/onnx/operators. The result is checked by whoever uses it:
every conversion is compared with ONNX Runtime on the original file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from profilers.errors import MeasurementFailed

Flags = Mapping[str, Any]
Operator = Callable[..., Any]


FEW = 32
"""Constants of at most this many entries are also known as Python numbers."""


class OnnxModule(nn.Module):
    """Runs the nodes of an ONNX graph one after the other; constants are buffers.

    Raises:
        MeasurementFailed: an operator that is not known here.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        graph = model.graph
        unknown = sorted({node.op_type for node in graph.node if node.op_type not in OPERATORS})
        if unknown:
            raise MeasurementFailed(f"operators that cannot be handed to PyTorch: {', '.join(unknown)}")
        self._slots: dict[str, str] = {}
        self._fixed: dict[str, list[Any]] = {}
        for place, tensor in enumerate(graph.initializer):
            value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            self._slots[tensor.name] = f"constant_{place}"
            self.register_buffer(f"constant_{place}", value)
            if value.ndim <= 1 and value.numel() <= FEW:  # sizes, axes, limits: Python numbers while tracing
                self._fixed[tensor.name] = value.reshape(-1).tolist()
        self._inputs = [value.name for value in graph.input if value.name not in self._slots]
        self._outputs = [value.name for value in graph.output]
        self._steps = [
            (node.op_type, list(node.input), list(node.output), _flags(node, self._fixed)) for node in graph.node
        ]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs and outputs in the order of the ONNX file."""
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        for name, slot in self._slots.items():
            values[name] = getattr(self, slot)
        for op, sources, targets, flags in self._steps:
            found = OPERATORS[op](flags, *[values[name] if name else None for name in sources])
            results = found if isinstance(found, tuple) else (found,)
            values.update(zip(targets, results, strict=False))
        return tuple(values[name] for name in self._outputs)


def load_module(path: str | Path) -> OnnxModule:
    """The module of an ONNX file, in eval mode."""
    return OnnxModule(onnx.load(path)).eval()


def example_inputs(path: str | Path) -> tuple[Tensor, ...]:
    """Zeros in the shapes that the file declares."""
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    values = [value.type.tensor_type for value in graph.input if value.name not in constants]
    kinds = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.FLOAT16: torch.float16}
    return tuple(
        torch.zeros([dim.dim_value for dim in value.shape.dim], dtype=kinds.get(value.elem_type, torch.int64))
        for value in values
    )


def _flags(node: onnx.NodeProto, fixed: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Attributes of a node, and under `at1`, `at2`, ... the values of its small constant inputs."""
    found = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    found.update({f"at{place}": fixed[name] for place, name in enumerate(node.input) if name in fixed})
    found["outputs"] = len(node.output)
    return found


def _sizes(flags: Flags, place: int, attribute: str) -> list[int] | None:
    """A list of integers: an input from some opset on, an attribute before."""
    found: list[int] | None = flags.get(f"at{place}", flags.get(attribute))
    return found


def _padded(flags: Flags, x: Tensor, kernel: Sequence[int], value: float) -> tuple[Tensor, list[int]]:
    """(input, symmetric padding to hand on): what is not symmetric is padded here."""
    axes = len(kernel)
    strides, dilations = flags.get("strides", [1] * axes), flags.get("dilations", [1] * axes)
    mode = flags.get("auto_pad", b"NOTSET")
    pads = list(flags.get("pads", [0] * 2 * axes))
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        for axis in range(axes):
            size, reach = x.shape[2 + axis], (kernel[axis] - 1) * dilations[axis] + 1
            total = max(0, (-(-size // strides[axis]) - 1) * strides[axis] + reach - size)
            pads[axis] = total // 2 if mode == b"SAME_UPPER" else total - total // 2
            pads[axes + axis] = total - pads[axis]
    if pads[:axes] == pads[axes:]:
        return x, pads[:axes]
    both = [amount for axis in reversed(range(axes)) for amount in (pads[axis], pads[axes + axis])]
    return functional.pad(x, both, value=value), [0] * axes


def _conv(flags: Flags, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, pads = _padded(flags, x, weight.shape[2:], 0.0)
    axes = weight.ndim - 2
    call = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    strides, dilations = flags.get("strides", [1] * axes), flags.get("dilations", [1] * axes)
    result: Tensor = call(x, weight, bias, strides, pads, dilations, flags.get("group", 1))
    return result


def _max_pool(flags: Flags, x: Tensor) -> Tensor:
    kernel = flags["kernel_shape"]
    if max(flags.get("pads", [0])) > 0 and _one_sided(flags):
        x, _ = _padded(flags, x, kernel, float("-inf"))
        pads = [0, 0]
    else:
        pads = _padded(flags, x, kernel, float("-inf"))[1]
    strides, dilations = flags.get("strides", [1, 1]), flags.get("dilations", [1, 1])
    found: Tensor = functional.max_pool2d(x, kernel, strides, pads, dilations, bool(flags.get("ceil_mode", 0)))
    return found


def _one_sided(flags: Flags) -> bool:
    pads = flags["pads"]
    return list(pads[: len(pads) // 2]) != list(pads[len(pads) // 2 :])


def _average_pool(flags: Flags, x: Tensor) -> Tensor:
    kernel, counted = flags["kernel_shape"], bool(flags.get("count_include_pad", 0))
    if "pads" in flags and _one_sided(flags) and not counted:
        raise MeasurementFailed("an AveragePool with padding on one side cannot be handed to PyTorch")
    x, pads = _padded(flags, x, kernel, 0.0)
    strides, ceil = flags.get("strides", [1, 1]), bool(flags.get("ceil_mode", 0))
    found: Tensor = functional.avg_pool2d(x, kernel, strides, pads, ceil, counted)
    return found


def _gemm(flags: Flags, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    left = a.mT if flags.get("transA") else a
    if not flags.get("transA") and flags.get("transB") and flags.get("alpha", 1.0) == flags.get("beta", 1.0) == 1.0:
        return functional.linear(left, b, c if c is None else c.reshape(-1))
    product: Tensor = flags.get("alpha", 1.0) * (left @ (b.mT if flags.get("transB") else b))
    return product if c is None else product + flags.get("beta", 1.0) * c


def _clip(flags: Flags, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least, most = flags.get("at1", [flags.get("min")])[0], flags.get("at2", [flags.get("max")])[0]
    return torch.clamp(x, least, most)


def _reshape(flags: Flags, x: Tensor, shape: Any = None) -> Tensor:
    sizes = _sizes(flags, 1, "shape") or []
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])


def _flatten(flags: Flags, x: Tensor) -> Tensor:
    axis = flags.get("axis", 1) % (x.ndim + 1)
    return x.flatten(axis) if axis == 1 else x.reshape(int(torch.Size(x.shape[:axis]).numel()), -1)


def _reduce(call: Operator) -> Operator:
    def run(flags: Flags, x: Tensor, axes: Any = None) -> Any:
        chosen = _sizes(flags, 1, "axes") or list(range(x.ndim))
        return call(x, chosen, bool(flags.get("keepdims", 1)))

    return run


def _split(flags: Flags, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = flags.get("axis", 0)
    parts = _sizes(flags, 1, "split") or -(-x.shape[axis] // flags["outputs"])
    return torch.split(x, parts, axis)


def _slice(flags: Flags, x: Tensor, *_: Any) -> Tensor:
    starts, ends = _sizes(flags, 1, "starts") or [], _sizes(flags, 2, "ends") or []
    axes = _sizes(flags, 3, "axes") or list(range(len(starts)))
    steps = flags.get("at4", [1] * len(starts))
    if min(steps) < 1:
        raise MeasurementFailed("a Slice backwards cannot be handed to PyTorch")
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut = [slice(None)] * x.ndim
        cut[axis % x.ndim] = slice(start, end, step)
        x = x[tuple(cut)]
    return x


def _pad(flags: Flags, x: Tensor, pads: Any = None, value: Tensor | None = None, axes: Any = None) -> Tensor:
    amounts, places = _sizes(flags, 1, "pads") or [], flags.get("at3", list(range(x.ndim)))
    if flags.get("mode", b"constant") != b"constant":
        raise MeasurementFailed("a Pad that is not constant cannot be handed to PyTorch")
    both = [0] * 2 * x.ndim
    for place, axis in enumerate(places):
        last = 2 * (x.ndim - 1 - axis % x.ndim)
        both[last : last + 2] = [amounts[place], amounts[len(places) + place]]
    return functional.pad(x, both, value=flags.get("at2", [0.0])[0])


def _squeeze(flags: Flags, x: Tensor, axes: Any = None) -> Tensor:
    chosen = _sizes(flags, 1, "axes")
    return x.squeeze() if chosen is None else x.squeeze(chosen)


def _unsqueeze(flags: Flags, x: Tensor, axes: Any = None) -> Tensor:
    chosen = _sizes(flags, 1, "axes") or []
    for axis in sorted(axis % (x.ndim + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def _resize(flags: Flags, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    mode, coordinates = flags.get("mode", b"nearest"), flags.get("coordinate_transformation_mode", b"half_pixel")
    size = flags["at3"][2:] if "at3" in flags else None
    factors = flags.get("at2", [])[2:] or None
    if mode == b"nearest" and coordinates == b"asymmetric":
        return functional.interpolate(x, size, None if size else factors, "nearest")
    if mode == b"linear" and coordinates in (b"half_pixel", b"pytorch_half_pixel", b"align_corners"):
        aligned = coordinates == b"align_corners"
        return functional.interpolate(x, size, None if size else factors, "bilinear", aligned)
    raise MeasurementFailed(f"a Resize ({mode!r}, {coordinates!r}) cannot be handed to PyTorch")


def _norm(flags: Flags, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = flags.get("axis", -1) % x.ndim
    return functional.layer_norm(x, x.shape[axis:], scale, bias, flags.get("epsilon", 1e-5))


def _batch_norm(flags: Flags, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, flags.get("epsilon", 1e-5))


def _gather(flags: Flags, x: Tensor, index: Tensor) -> Tensor:
    return torch.index_select(x, flags.get("axis", 0), index.reshape(-1)).reshape(
        *x.shape[: flags.get("axis", 0)], *index.shape, *x.shape[flags.get("axis", 0) + 1 :]
    )


def _elementwise(call: Operator) -> Operator:
    return lambda flags, *values: call(*values)


OPERATORS: dict[str, Operator] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "Gemm": _gemm,
    "Clip": _clip,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Resize": _resize,
    "LayerNormalization": _norm,
    "BatchNormalization": _batch_norm,
    "Gather": _gather,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "GlobalAveragePool": lambda flags, x: x.mean(list(range(2, x.ndim)), True),
    "Concat": lambda flags, *values: torch.cat(values, flags["axis"]),
    "Transpose": lambda flags, x: x.permute(*flags.get("perm", range(x.ndim)[::-1])),
    "Softmax": lambda flags, x: torch.softmax(x, flags.get("axis", -1)),
    "LeakyRelu": lambda flags, x: functional.leaky_relu(x, flags.get("alpha", 0.01)),
    "Elu": lambda flags, x: functional.elu(x, flags.get("alpha", 1.0)),
    "HardSigmoid": lambda flags, x: torch.clamp(x * flags.get("alpha", 0.2) + flags.get("beta", 0.5), 0, 1),
    "Gelu": lambda flags, x: functional.gelu(x, approximate=flags.get("approximate", b"none").decode()),
    "Identity": _elementwise(lambda x: x),
    "Dropout": _elementwise(lambda x, *_: x),
    "MatMul": _elementwise(torch.matmul),
    "Add": _elementwise(torch.add),
    "Sub": _elementwise(torch.sub),
    "Mul": _elementwise(torch.mul),
    "Div": _elementwise(torch.div),
    "Pow": _elementwise(torch.pow),
    "Relu": _elementwise(torch.relu),
    "Sigmoid": _elementwise(torch.sigmoid),
    "Tanh": _elementwise(torch.tanh),
    "Erf": _elementwise(torch.erf),
    "Sqrt": _elementwise(torch.sqrt),
    "Exp": _elementwise(torch.exp),
    "HardSwish": _elementwise(functional.hardswish),
    "Softplus": _elementwise(functional.softplus),
    "PRelu": _elementwise(lambda x, slope: functional.prelu(x, slope.reshape(-1))),
}
"""ONNX operator -> function of (attributes, inputs); left-out inputs are None."""
