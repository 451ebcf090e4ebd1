"""Costs read from ONNX files: formulas for hand-made graphs, the trace's MACs for exported networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from profilers.complexity import measure
from profilers.errors import MeasurementFailed
from profilers.onnx_cost import graph_cost
from tests.profilers.onnx_files import write_convolution


def write(path: Path, nodes: list[NodeProto], shape: list[int | str], **tensors: np.ndarray) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_a_convolution_with_its_relu_is_one_layer(tmp_path: Path) -> None:
    found = graph_cost(write_convolution(tmp_path / "m.onnx", channels=4, size=8), batch=2)
    (layer,) = found.layers
    assert (layer.macs, layer.weights) == (2 * 4 * 64 * 27, 4 * 27)
    assert (layer.in_elements, layer.out_elements) == (2 * 3 * 64, 2 * 4 * 64)
    assert (layer.kernel, layer.stride, layer.groups, layer.in_channels, layer.out_channels) == (3, 1, 1, 3, 4)
    assert layer.traffic == 4 * (384 + 512 + 108)
    assert (found.macs, found.batch, found.free, found.unknown) == (layer.macs, 2, (("Relu", 1),), ())


def test_swish_is_one_memory_layer_and_reshapes_are_free(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        helper.make_node("Mul", ["x", "s"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1),
    ]
    found = graph_cost(write(tmp_path / "m.onnx", nodes, [1, 2, 3, 3], w=ones(5, 18), b=ones(5)))
    swish, product = found.layers
    assert (swish.type, swish.macs, swish.in_elements, swish.out_elements) == ("Swish", 0, 36, 18)
    assert (product.type, product.macs, product.weights, product.in_channels) == ("InnerProduct", 90, 90, 18)


def test_attention_products_have_no_weight(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["p"]),
        helper.make_node("Softmax", ["p"], ["y"]),
    ]
    found = graph_cost(write(tmp_path / "m.onnx", nodes, [2, 10, 16]))
    product = next(layer for layer in found.layers if layer.kind == "attention")
    assert (product.macs, product.weights, product.in_elements) == (2 * 10 * 10 * 16, 0, 2 * 2 * 160)


def test_grouped_and_transposed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], group=4, pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["c", "v"], ["y"], strides=[2, 2]),
    ]
    found = graph_cost(write(tmp_path / "m.onnx", nodes, [1, 8, 10, 10], w=ones(8, 2, 3, 3), v=ones(8, 16, 3, 3)))
    assert [layer.macs for layer in found.layers] == [8 * 100 * 2 * 9, 8 * 100 * 16 * 9]


def test_weights_that_unpack_themselves_cost_nothing_at_run_time(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["packed"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "scale"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"]),
    ]
    packed = np.ones((4, 3, 1, 1), np.int8)
    found = graph_cost(write(tmp_path / "m.onnx", nodes, [1, 3, 5, 5], packed=packed, scale=ones(1)))
    assert [(layer.op, layer.macs, layer.weights) for layer in found.layers] == [("Conv", 4 * 25 * 3, 12)]


class Small(nn.Module):
    """Convolutions of several kinds, batch norm, residual, squeeze and excite, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.depthwise(x) * self.squeeze(x).sigmoid()
        tokens = x.flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def test_file_and_trace_agree(tmp_path: Path) -> None:
    model, x = Small().eval(), torch.zeros(1, 3, 16, 16)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    program.save(tmp_path / "m.onnx")
    found = graph_cost(tmp_path / "m.onnx")
    assert found.macs == measure(model, (x,)).macs
    assert found.unknown == ()
    assert {layer.type for layer in found.layers} >= {"Convolution", "ConvolutionDepthWise", "InnerProduct", "Swish"}


def test_what_cannot_be_counted_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08nonsense")
    with pytest.raises(MeasurementFailed, match=r"bad\.onnx"):
        graph_cost(tmp_path / "bad.onnx")
    with pytest.raises(MeasurementFailed, match=r"absent\.onnx cannot be read"):
        graph_cost(tmp_path / "absent.onnx")
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    free = write(tmp_path / "free.onnx", relu, ["N", 3, "H", "W"])
    with pytest.raises(MeasurementFailed, match="has a free size: give an input shape"):
        graph_cost(free)
    assert graph_cost(free, input_shapes={"x": (1, 3, 8, 8)}).layers[0].out_elements == 192
    nonzero = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Cast", ["n"], ["c"], to=1)]
    nonzero.append(helper.make_node("Relu", ["c"], ["y"]))
    with pytest.raises(MeasurementFailed, match="depends on the data"):
        graph_cost(write(tmp_path / "data.onnx", nonzero, [4]))
