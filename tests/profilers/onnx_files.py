"""Tiny ONNX files written by hand, so that no exporter is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_convolution(path: Path, channels: int = 4, size: int = 8, batch: int | str = "N", seed: int = 0) -> Path:
    """x (batch, 3, size, size) -> Conv 3x3 (padding 1) -> Relu -> y; weights `w`, `b`."""
    weight = np.random.default_rng(seed).standard_normal((channels, 3, 3, 3)).astype(np.float32)
    bias = np.zeros(channels, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, channels, size, size])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
