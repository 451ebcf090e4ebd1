"""Shorter files mean the same: default attributes, names, remarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from exporters.shorten import base36, shorten
from tests.exporters.onnx_nets import make, run, save, sparse


def test_base36() -> None:
    assert [base36(n) for n in (0, 9, 10, 35, 36, 71, 1295, 1296)] == ["0", "9", "a", "z", "10", "1z", "zz", "100"]
    assert all(int(base36(n), 36) == n for n in range(5000))


def test_default_attributes_go_and_others_stay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node(
            "Conv", ["x", "w"], ["c"], auto_pad="NOTSET", dilations=[1, 1], group=1, kernel_shape=[3, 3],
            pads=[0, 0, 0, 0], strides=[1, 1],
        ),
        helper.make_node(
            "Conv", ["c", "v"], ["d"], dilations=[2, 2], group=2, kernel_shape=[3, 3], pads=[2, 2, 2, 2], strides=[1, 2]
        ),
        helper.make_node("MaxPool", ["d"], ["p"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=0, pads=[0, 0, 0, 0]),
        helper.make_node("AveragePool", ["p"], ["a"], kernel_shape=[2, 2], count_include_pad=1, pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["a"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "g"], ["y"], alpha=1.0, beta=1.0, transA=0, transB=1),
    ]  # fmt: skip
    arrays = {"w": sparse((4, 2, 3, 3), 1), "v": sparse((4, 2, 3, 3), 1, 1)}
    size = 4 * 5 * 3
    arrays["g"] = sparse((6, size), 1, 2)
    model = make(nodes, arrays, [("x", ["N", 2, 10, 11])], [("y", ["N", 6])])
    before = run(save(model, tmp_path / "a.onnx"))
    shorten(model, keep={"w", "v", "g"})
    onnx.checker.check_model(model, full_check=True)
    assert run(save(model, tmp_path / "b.onnx"))[0].tobytes() == before[0].tobytes()
    left = [{item.name for item in node.attribute} for node in model.graph.node]
    assert left == [
        {"kernel_shape"},
        {"dilations", "group", "kernel_shape", "pads", "strides"},
        {"kernel_shape", "strides"},
        {"kernel_shape", "count_include_pad", "pads"},
        set(),
        {"transB"},
    ]


def test_names_and_remarks(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["a rather long name"], "/layer/MatMul", doc_string="file.py:3"),
        helper.make_node("Relu", ["a rather long name"], ["y"]),
    ]
    model = make(nodes, {"weight": np.eye(4, dtype=np.float32)}, [("x", ["N", 4])], [("y", ["N", 4])])
    model.graph.value_info.append(helper.make_tensor_value_info("a rather long name", 1, ["N", 4]))
    shorten(model, keep={"weight"})
    assert [(list(n.input), list(n.output), n.name) for n in model.graph.node] == [
        (["x", "weight"], ["0"], ""),
        (["0"], ["y"], ""),
    ]
    assert not model.graph.value_info
    assert not model.graph.node[0].doc_string
    assert run(save(model, tmp_path / "a.onnx"))
