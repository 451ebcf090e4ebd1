"""The proof that a packed file holds the weights of a plain one (the way back: test_packing.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import helper

from exporters.packing import pack
from exporters.unpacking import unpacks_to
from tests.exporters.onnx_nets import make, save, sparse


def test_constants_that_the_graph_computes_itself_are_compared_by_value(tmp_path: Path) -> None:
    """Attention biases are a gathered table, reshaped: that is no decoder's work, and its name does not survive."""

    def network(table: np.ndarray) -> Path:
        nodes = [
            helper.make_node("Reshape", ["table", "shape"], ["a_long_name_for_the_reshaped_table"]),
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Add", ["h", "a_long_name_for_the_reshaped_table"], ["y"]),
        ]
        arrays = {"w": sparse((60, 200), 0.1), "table": table, "shape": np.array([1, 200])}
        return save(make(nodes, arrays, [("x", ["N", 60])], [("y", ["N", 200])]), tmp_path / "a.onnx")

    table = sparse((20, 10), 1.0, 3)
    source, target = network(table), tmp_path / "b.onnx"
    assert pack(source, target).tensors
    assert unpacks_to(target, source)
    assert not unpacks_to(target, network(table + 1))
