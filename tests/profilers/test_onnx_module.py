"""An ONNX graph as a PyTorch module: equal to ONNX Runtime, exportable, and refusing what it does not know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from profilers.errors import MeasurementFailed
from profilers.mobile.onnx_module import example_inputs, load_module

RNG = np.random.default_rng(0)
W = RNG.standard_normal((6, 4, 3, 3)).astype(np.float32) * 0.3
DEPTHWISE = RNG.standard_normal((4, 1, 3, 3)).astype(np.float32)
LINE = RNG.standard_normal(4).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def node(op: str, *inputs: str, **flags: object) -> NodeProto:
    return helper.make_node(op, ["x", *inputs], ["y"], **flags)


def graph(nodes: list[NodeProto], constants: dict[str, np.ndarray], shape: tuple[int, ...]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "one",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


CASES = {
    "convolution": (node("Conv", "w", pads=[1, 1, 1, 1], strides=[2, 2]), {"w": W}),
    "convolution padded on one side": (node("Conv", "w", pads=[0, 1, 1, 2], dilations=[2, 1]), {"w": W}),
    "convolution, SAME_UPPER": (node("Conv", "w", auto_pad="SAME_UPPER", strides=[2, 3]), {"w": W}),
    "depthwise": (node("Conv", "w", "b", group=4), {"w": DEPTHWISE, "b": LINE}),
    "max pool padded on one side": (node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]), {}),
    "max pool, rounded up": (node("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), {}),
    "average pool": (node("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), {}),
    "average pool with padding": (node("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1), {}),
    "clip": (node("Clip", "low", "high"), {"low": np.float32(-0.5), "high": np.float32(0.7)}),
    "mean over the image": (node("ReduceMean", "axes", keepdims=0), {"axes": ints(2, 3)}),
    "global pool": (node("GlobalAveragePool"), {}),
    "slice": (node("Slice", "s", "e", "a", "t"), {"s": ints(1), "e": ints(99), "a": ints(-1), "t": ints(2)}),
    "reshape with 0 and -1": (node("Reshape", "shape"), {"shape": ints(0, -1)}),
    "flatten": (node("Flatten"), {}),
    "transpose": (node("Transpose", perm=[0, 2, 3, 1]), {}),
    "pad": (node("Pad", "p", "v"), {"p": ints(0, 0, 1, 2, 0, 0, 3, 0), "v": np.float32(0.5)}),
    "softmax": (node("Softmax", axis=1), {}),
    "layer norm": (
        node("LayerNormalization", "w", "b", axis=-1),
        {"w": np.ones(7, np.float32), "b": LINE[:1].repeat(7)},
    ),
    "batch norm": (node("BatchNormalization", "s", "b", "m", "v"), {n: abs(LINE) for n in "sbmv"}),
    "hard sigmoid": (node("HardSigmoid", alpha=1 / 6, beta=0.5), {}),
    "hard swish": (node("HardSwish"), {}),
    "gelu": (node("Gelu"), {}),
    "leaky relu": (node("LeakyRelu", alpha=0.1), {}),
    "resize, nearest": (
        node("Resize", "", "s", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        {"s": np.asarray([1, 1, 2, 2], np.float32)},
    ),
    "resize, bilinear": (node("Resize", "", "", "z", mode="linear"), {"z": ints(1, 4, 9, 5)}),
    "gather": (node("Gather", "i", axis=1), {"i": ints(3, 0)}),
    "unsqueeze": (node("Unsqueeze", "a"), {"a": ints(0, -1)}),
}


@pytest.mark.parametrize("name", CASES)
def test_one_operator_equals_onnx_runtime(name: str, tmp_path: Path) -> None:
    one, constants = CASES[name]
    agree(graph([one], constants, (1, 4, 8, 7)), (1, 4, 8, 7), tmp_path)


@pytest.mark.parametrize("flags", [{"transB": 1}, {"transA": 1}, {"alpha": 0.5, "beta": 2.0}])
def test_products(flags: dict[str, float], tmp_path: Path) -> None:
    weight = RNG.standard_normal((5, 8) if "transB" in flags else (8, 5)).astype(np.float32)
    bias = RNG.standard_normal(5).astype(np.float32)
    shape = (8, 3) if "transA" in flags else (3, 8)
    agree(graph([node("Gemm", "w", "b", **flags)], {"w": weight, "b": bias}, shape), shape, tmp_path)


def test_branches_meet_again(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=1),
        helper.make_node("Sigmoid", ["a"], ["g"]),
        helper.make_node("Mul", ["g", "b"], ["m"]),
        helper.make_node("Concat", ["m", "x"], ["c"], axis=1),
        helper.make_node("Squeeze", ["c", "first"], ["s"]),
        helper.make_node("Div", ["s", "two"], ["y"]),
    ]
    constants = {"sizes": ints(2, 2), "first": ints(0), "two": np.float32(2)}
    agree(graph(nodes, constants, (1, 4, 8, 7)), (1, 4, 8, 7), tmp_path)


def agree(model: onnx.ModelProto, shape: tuple[int, ...], folder: Path) -> None:
    path = folder / "one.onnx"
    onnx.save(model, path)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(str(path)).run(None, {"x": x})
    (found,) = load_module(path)(torch.from_numpy(x))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert [tuple(tensor.shape) for tensor in example_inputs(path)] == [shape]


def test_it_can_be_exported(tmp_path: Path) -> None:
    path = tmp_path / "clip.onnx"
    onnx.save(graph([CASES["clip"][0]], CASES["clip"][1], (1, 4, 8, 7)), path)
    program = torch.export.export(load_module(path), example_inputs(path))
    x = torch.linspace(-2, 2, 224).reshape(1, 4, 8, 7)
    assert torch.equal(program.module()(x)[0], x.clamp(-0.5, 0.7))


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (node("Sign"), "Sign"),
        (node("Resize", "", "s", mode="cubic"), "Resize"),
        (node("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1]), "AveragePool"),
        (node("Pad", "p", mode="reflect"), "Pad"),
    ],
)
def test_what_it_does_not_know_is_named(one: NodeProto, message: str, tmp_path: Path) -> None:
    constants = {"s": np.asarray([1, 1, 2, 2], np.float32), "p": ints(0, 0, 1, 1, 0, 0, 1, 1)}
    path = tmp_path / "one.onnx"
    onnx.save(graph([one], constants, (1, 4, 8, 7)), path)
    with pytest.raises(MeasurementFailed, match=message):
        load_module(path)(torch.zeros(1, 4, 8, 7))
