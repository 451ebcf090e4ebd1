"""Cost of an ONNX file layer by layer: MACs and traffic from the graph as ONNX Runtime folds it.

ONNX Runtime's basic optimisations come first: they unpack self-unpacking weights, fold constants and merge batch
normalisation into convolutions. Then layers are formed as mobile runtimes form them: ReLU and ReLU6 (Clip) behind a
convolution or product cost nothing, Sigmoid x Mul is one swish, a bias addition belongs to its product, reshapes are
free. The MACs follow the rule of `profilers.op_costs`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime
from onnx import NodeProto

from profilers.errors import MeasurementFailed, first_line
from profilers.op_costs import convolution_macs, matmul_macs

Kind = Literal["convolution", "product", "attention", "memory"]

_FREE = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Constant", "ConstantOfShape"}
    | {"Shape", "Size", "Range", "Cast", "Expand"}
)
_ELEMENTWISE_CONSTANT = frozenset({"Add", "Mul", "Sub", "Div"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv", "ConvInteger", "QLinearConv"})
_PRODUCTS = frozenset({"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul"})
_NAMES = {
    "Relu": "ReLU",
    "Clip": "ReLU",
    "Add": "BinaryOp",
    "Sub": "BinaryOp",
    "Mul": "BinaryOp",
    "Div": "BinaryOp",
    "MaxPool": "Pooling",
    "AveragePool": "Pooling",
    "GlobalAveragePool": "Pooling",
    "GlobalMaxPool": "Pooling",
    "ReduceMean": "Reduction",
    "Resize": "Interp",
    "Upsample": "Interp",
    "Pad": "Padding",
    "Transpose": "Permute",
    "Split": "Slice",
    "Slice": "Slice",
    "Gather": "Slice",
    "Swish": "Swish",
    "QuickGelu": "Swish",
    "HardSwish": "HardSwish",
    "HardSigmoid": "HardSigmoid",
    "Sigmoid": "Sigmoid",
    "Softmax": "Softmax",
    "Concat": "Concat",
}


@dataclass(frozen=True, slots=True)
class GraphLayer:
    """One layer at the batch that was asked for; element counts, not bytes.

    Attributes:
        op: ONNX operator; type: what mobile runtimes call it.
        kernel, stride, groups, in_channels, out_channels: of convolutions and products with a weight, else 0 (stride
            and groups 1).
        weights: elements of the weight, without the bias.
        in_elements, out_elements: of all activations read and written.
    """

    name: str
    op: str
    type: str
    kind: Kind
    macs: int
    weights: int
    in_elements: int
    out_elements: int
    kernel: int = 0
    stride: int = 1
    groups: int = 1
    in_channels: int = 0
    out_channels: int = 0

    @property
    def traffic(self) -> int:
        """Bytes read and written in single precision, each tensor once."""
        return 4 * (self.in_elements + self.out_elements + self.weights)


@dataclass(frozen=True, slots=True)
class GraphCost:
    """All layers of a file.

    Attributes:
        free: (operator, count) of nodes that cost nothing (reshapes, folded activations).
        unknown: (operator, count) of memory-bound layers without a known type.
    """

    layers: tuple[GraphLayer, ...]
    batch: int
    params: int
    free: tuple[tuple[str, int], ...]
    unknown: tuple[tuple[str, int], ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole batch."""
        return sum(layer.macs for layer in self.layers)

    @property
    def traffic(self) -> int:
        """Bytes moved in single precision."""
        return sum(layer.traffic for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """All fields and the totals as JSON can hold them."""
        return {**asdict(self), "macs": self.macs, "flops": 2 * self.macs, "traffic": self.traffic}


def graph_cost(path: Path, *, batch: int = 1, input_shapes: Mapping[str, Sequence[int]] | None = None) -> GraphCost:
    """Layers of the ONNX file `path` for one inference of `batch` samples.

    Args:
        batch: where the first dimension of an input is free.
        input_shapes: shapes by input name, for inputs with other free dimensions.

    Raises:
        MeasurementFailed: the file cannot be loaded, or a shape stays unknown.
    """
    model = _folded(Path(path), batch, input_shapes or {})
    return _Reader(model, Path(path).name).read(batch)


def _folded(path: Path, batch: int, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The graph with fixed input shapes after ONNX Runtime's basic optimisations, with all shapes inferred."""
    with tempfile.TemporaryDirectory(prefix="cost-") as folder:
        optimised = Path(folder) / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = os.fspath(optimised)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        for name, size in _free_dimensions(path, batch, shapes).items():
            options.add_free_dimension_override_by_name(name, size)
        try:
            onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
            model = onnx.load(optimised, load_external_data=False)
            return onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception as error:  # onnxruntime raises a class of its own for every status
            raise MeasurementFailed(f"ONNX Runtime cannot load {path.name}: {first_line(error)}") from error


def _free_dimensions(path: Path, batch: int, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Sizes for the named free dimensions of the inputs."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except OSError as error:
        raise MeasurementFailed(f"{path.name} cannot be read: {first_line(error)}") from error
    except Exception as error:  # protobuf's DecodeError
        raise MeasurementFailed(f"{path.name} is not an ONNX file: {first_line(error)}") from error
    initial = {tensor.name for tensor in graph.initializer}
    found: dict[str, int] = {}
    for value in graph.input:
        if value.name in initial:
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            size = shapes[value.name][axis] if value.name in shapes else (batch if axis == 0 else None)
            if size is None or not dim.dim_param:
                raise MeasurementFailed(f"input {value.name} of {path.name} has a free size: give an input shape")
            found[dim.dim_param] = int(size)
    return found


class _Reader:
    """Walks the nodes of one folded graph."""

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        graph = model.graph
        self._name = name
        self._constants: dict[str, tuple[int, ...]] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self._shapes: dict[str, tuple[int, ...]] = dict(self._constants)
        for value in [*graph.input, *graph.output, *graph.value_info]:
            dims = value.type.tensor_type.shape.dim
            self._shapes[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
        self._nodes = list(graph.node)
        self._outputs = {value.name for value in graph.output}
        self._makers = {name: node for node in self._nodes for name in node.output}
        self._users: dict[str, list[NodeProto]] = {}
        for node in self._nodes:
            for used in node.input:
                self._users.setdefault(used, []).append(node)
        self._free: dict[str, int] = {}
        self._unknown: dict[str, int] = {}

    def read(self, batch: int) -> GraphCost:
        """All layers in graph order."""
        layers = tuple(layer for node in self._nodes for layer in self._layers(node))
        return GraphCost(
            layers=layers,
            batch=batch,
            params=sum(prod(shape) for shape in self._constants.values()),
            free=tuple(sorted(self._free.items())),
            unknown=tuple(sorted(self._unknown.items())),
        )

    def _layers(self, node: NodeProto) -> Iterator[GraphLayer]:
        if node.op_type in _FREE or self._is_static(node) or self._is_folded(node):
            self._free[node.op_type] = self._free.get(node.op_type, 0) + 1
        elif node.op_type in _CONVOLUTIONS:
            yield self._convolution(node)
        elif node.op_type in _PRODUCTS:
            yield self._product(node)
        else:
            yield self._memory(node)

    def _is_static(self, node: NodeProto) -> bool:
        return all(name in self._constants or not name for name in node.input)

    def _is_folded(self, node: NodeProto) -> bool:
        """Whether the node is part of the layer before it in every mobile runtime."""
        maker = next((self._makers[name] for name in node.input if name in self._makers), None)
        if node.op_type == "Sigmoid":  # x * sigmoid(x): the Mul stands for the swish
            users = self._users.get(node.output[0], [])
            return len(users) == 1 and users[0].op_type == "Mul" and node.input[0] in users[0].input
        if maker is None or len(self._users.get(maker.output[0], [])) != 1:
            return False
        if node.op_type in ("Relu", "Clip"):
            return maker.op_type in _CONVOLUTIONS | _PRODUCTS or (maker.op_type == "Add" and self._is_folded(maker))
        constant = any(name in self._constants for name in node.input)
        return node.op_type in _ELEMENTWISE_CONSTANT and constant and maker.op_type in _PRODUCTS | _CONVOLUTIONS

    def _convolution(self, node: NodeProto) -> GraphLayer:
        shift = 3 if node.op_type == "QLinearConv" else 1
        inputs, weight = self._shape(node, node.input[0]), self._shape(node, node.input[shift])
        outputs = self._shape(node, node.output[0])
        attributes = {item.name: item for item in node.attribute}
        strides = list(attributes["strides"].ints) if "strides" in attributes else [1]
        groups = int(attributes["group"].i) if "group" in attributes else 1
        transposed = node.op_type == "ConvTranspose"
        return GraphLayer(
            name=node.name or node.output[0],
            op=node.op_type,
            type="Convolution" if groups == 1 else "ConvolutionDepthWise",
            kind="convolution",
            macs=convolution_macs(inputs, weight, outputs, transposed=transposed),
            weights=prod(weight),
            in_elements=prod(inputs),
            out_elements=prod(outputs),
            kernel=int(weight[-1]),
            stride=int(strides[-1]),
            groups=groups,
            in_channels=int(inputs[1]),
            out_channels=int(outputs[1]),
        )

    def _product(self, node: NodeProto) -> GraphLayer:
        quantised = node.op_type == "QLinearMatMul"
        names = (node.input[0], node.input[3] if quantised else node.input[1])
        left, right = (self._shape(node, name) for name in names)
        outputs = self._shape(node, node.output[0])
        attributes = {item.name: item.i for item in node.attribute}
        if attributes.get("transA") and len(left) == 2:
            left = (left[1], left[0])
        columns = right[-2] if attributes.get("transB") and len(right) > 1 else right[-1]
        has_weight = names[1] in self._constants
        return GraphLayer(
            name=node.name or node.output[0],
            op=node.op_type,
            type="InnerProduct" if has_weight else "MatMul",
            kind="product" if has_weight else "attention",
            macs=matmul_macs(left, (left[-1], columns)),
            weights=prod(right) if has_weight else 0,
            in_elements=prod(left) + (0 if has_weight else prod(right)),
            out_elements=prod(outputs),
            in_channels=int(left[-1]) if has_weight else 0,
            out_channels=int(columns) if has_weight else 0,
        )

    def _memory(self, node: NodeProto) -> GraphLayer:
        op = self._swish(node) or node.op_type
        if op not in _NAMES:
            self._unknown[op] = self._unknown.get(op, 0) + 1
        sources = {name for name in node.input if name and name not in self._constants}
        return GraphLayer(
            name=node.name or node.output[0],
            op=op,
            type=_NAMES.get(op, op),
            kind="memory",
            macs=0,
            weights=0,
            in_elements=sum(prod(self._shape(node, name)) for name in sources),
            out_elements=sum(prod(self._shape(node, name)) for name in node.output if name and name in self._users)
            or prod(self._shape(node, node.output[0])),
        )

    def _swish(self, node: NodeProto) -> str | None:
        makers = [self._makers[name] for name in node.input if name in self._makers]
        gates = (maker for maker in makers if maker.op_type == "Sigmoid" and maker.input[0] in node.input)
        return "Swish" if node.op_type == "Mul" and next(gates, None) is not None else None

    def _shape(self, node: NodeProto, name: str) -> tuple[int, ...]:
        shape: tuple[int, ...] | None = self._shapes.get(name)
        if shape is None or any(size < 0 for size in shape):
            raise MeasurementFailed(
                f"{self._name} cannot be counted: the size of {name!r} (operator {node.op_type}) depends on the data"
            )
        return shape
