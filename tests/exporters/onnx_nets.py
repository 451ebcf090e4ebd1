"""Small ONNX graphs made by hand, with weights as sparse as asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

NUMPY_TO_ONNX = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def sparse(shape: Sequence[int], density: float, seed: int = 0) -> np.ndarray:
    """Normal values, each kept with probability `density`; the zeros are positive."""
    random = np.random.default_rng(seed)
    return np.where(random.random(shape) < density, random.normal(size=shape) * 0.1, 0).astype(np.float32)


def convnet(
    density: float = 0.1, *, opset: int = 20, dtype: str = "float32", seed: int = 0, second: float | None = None
) -> onnx.ModelProto:
    """Conv 3x3, Relu, grouped Conv, Relu, global pool, Gemm, MatMul; dynamic batch; about 23,000 weights."""
    nodes = [
        helper.make_node("Conv", ["x", "c1.weight", "c1.bias"], ["c1"], "conv_one", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "c2.weight"], ["c2"], group=4, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["h"], transB=1),
        helper.make_node("MatMul", ["h", "out.weight"], ["y"]),
    ]
    arrays = {
        "c1.weight": sparse((48, 3, 3, 3), density if second is None else second, seed),
        "c1.bias": sparse((48,), 1.0, seed + 1),
        "c2.weight": sparse((64, 12, 3, 3), density, seed + 2),
        "fc.weight": sparse((96, 64), density, seed + 3),
        "fc.bias": sparse((96,), 1.0, seed + 4),
        "out.weight": sparse((96, 90), density, seed + 5),
    }
    return make(
        nodes,
        {name: array.astype(dtype) for name, array in arrays.items()},
        [("x", ["N", 3, 8, 8])],
        [("y", ["N", 90])],
        opset=opset,
        dtype=dtype,
    )


def make(
    nodes: list[NodeProto],
    arrays: dict[str, np.ndarray],
    inputs: list[tuple[str, list[object]]],
    outputs: list[tuple[str, list[object]]],
    *,
    opset: int = 20,
    dtype: str = "float32",
) -> onnx.ModelProto:
    """A checked model of these nodes and initializers."""
    kind = NUMPY_TO_ONNX[dtype]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write and return the path."""
    onnx.save(model, path)
    return path


def run(path: Path, batch: int = 3, *, optimise: bool = True, seed: int = 0) -> list[np.ndarray]:
    """Outputs of ONNX Runtime on a seeded random input, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else batch for size in value.shape]
        kind = np.float16 if "float16" in value.type else np.float32
        feed[value.name] = np.random.default_rng(seed).normal(size=shape).astype(kind)
    return session.run(None, feed)


def initializers(path: Path) -> dict[str, np.ndarray]:
    """Initializers of a file by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
