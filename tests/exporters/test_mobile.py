"""Files for phones: pooling, `.ort`, and what accelerators take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from exporters.errors import BadOnnxFile
from exporters.mobile import convert_to_ort, pooling_for_phones, usability
from exporters.packing import pack
from tests.exporters.onnx_nets import convnet, make, run, save


def mean_net(opset: int = 20, axes: tuple[int, ...] = (-1, -2), keepdims: int = 1, rank: int = 4) -> onnx.ModelProto:
    shape: list[object] = ["N", 3, *[6] * (rank - 2)]
    reduced: list[object] = [None] * (rank if keepdims else rank - len(axes))
    if opset >= 18:
        node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keepdims)
        return make([node], {"axes": np.array(axes, np.int64)}, [("x", shape)], [("y", reduced)], opset=opset)
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=list(axes), keepdims=keepdims)
    return make([node], {}, [("x", shape)], [("y", reduced)], opset=opset)


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("axes", [(-1, -2), (2, 3), (3, 2)])
def test_mean_over_both_image_axes_becomes_pooling(opset: int, axes: tuple[int, ...], tmp_path: Path) -> None:
    model = mean_net(opset, axes)
    before = run(save(model, tmp_path / "a.onnx"))
    assert pooling_for_phones(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["GlobalAveragePool"]
    assert not model.graph.initializer
    after = run(save(model, tmp_path / "b.onnx"))
    assert np.allclose(before[0], after[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("axes", "keepdims", "rank"), [((1,), 1, 4), ((1, 2), 1, 4), ((2, 3), 0, 4), ((2,), 1, 3), ((2, 3), 1, 5)]
)
def test_other_means_stay(axes: tuple[int, ...], keepdims: int, rank: int) -> None:
    model = mean_net(20, axes, keepdims, rank)
    assert pooling_for_phones(model) == 0
    assert [node.op_type for node in model.graph.node] == ["ReduceMean"]


def test_coreml_takes_the_rewritten_pooling(tmp_path: Path) -> None:
    model = mean_net()
    rows = {row.engine: row for row in usability(save(model, tmp_path / "a.onnx"))}
    assert rows["coreml neuralnetwork"].unsupported == ("ai.onnx:ReduceMean",)
    assert rows["coreml neuralnetwork"].supported == 0
    pooling_for_phones(model)
    rows = {row.engine: row for row in usability(save(model, tmp_path / "b.onnx"))}
    assert {row.supported for row in rows.values()} == {1}
    assert rows["coreml neuralnetwork"].suitability == "yes"
    assert rows["nnapi"].to_dict()["nodes"] == 1


def test_ort_file_answers_the_same_and_names_its_operators(tmp_path: Path) -> None:
    source = save(convnet(0.1), tmp_path / "dense.onnx")
    pack(source, tmp_path / "packed.onnx")
    for name in ("dense", "packed"):
        found = convert_to_ort(tmp_path / f"{name}.onnx", tmp_path / f"{name}.ort")
        assert found.ort_bytes == (tmp_path / f"{name}.ort").stat().st_size
        assert any(operator.endswith(" Conv") or operator.endswith(" FusedConv") for operator in found.operators)
        assert found.config.read_text().count("Gemm") == 1
        assert np.allclose(run(source)[0], run(found.ort)[0], rtol=1e-5, atol=1e-6)
    assert abs((tmp_path / "packed.ort").stat().st_size - (tmp_path / "dense.ort").stat().st_size) < 200
    assert onnxruntime.InferenceSession(tmp_path / "dense.ort").get_inputs()[0].shape == ["N", 3, 8, 8]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".config"] * 2 + [".onnx"] * 2 + [".ort"] * 2


def test_broken_file_is_not_converted(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no")
    with pytest.raises(BadOnnxFile):
        convert_to_ort(tmp_path / "bad.onnx", tmp_path / "bad.ort")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]
