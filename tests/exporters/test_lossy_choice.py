"""Calibration: which weights matter, bits per layer under an error budget, and comparisons of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from exporters import feeds as f
from exporters.allocation import BITS, allocate, uniform_error
from exporters.calibration import importance
from exporters.errors import BadOnnxFile
from exporters.packing import pack
from tests.exporters.onnx_nets import convnet, initializers, make, run, save, sparse


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, np.ndarray]]]:
    path = save(convnet(0.3), tmp_path_factory.mktemp("lossy") / "net.onnx")
    return path, [feed | {"x": feed["x"][:, :, :8, :8]} for feed in f.random_feeds(path, 3, batch=2)]


def test_random_feeds_follow_the_file(net: tuple[Path, list[dict[str, np.ndarray]]]) -> None:
    first, again = f.random_feeds(net[0], 2, batch=5), f.random_feeds(net[0], 2, batch=5)
    assert [feed["x"].shape for feed in first] == [(5, 3, 8, 8)] * 2
    assert first[0]["x"].dtype == np.float32
    assert np.array_equal(first[1]["x"], again[1]["x"])
    assert not np.array_equal(first[0]["x"], first[1]["x"])


def test_comparison_by_hand() -> None:
    left = [[np.array([[3.0, -4.0], [0.0, 1.0]], np.float32)]]
    right = [[np.array([[3.0, -3.0], [2.0, 1.0]], np.float32)]]
    found = f.compare_answers(left, right)
    assert found.max_rel == 0.5
    assert found.rms_rel == pytest.approx(np.sqrt(5 / 26))
    assert found.same_top == 0.5
    assert not found.identical
    assert f.compare_answers(left, left) == f.Comparison(0.0, 0.0, 1.0, True, 1)


def test_other_outputs_are_an_error(net: tuple[Path, list[dict[str, np.ndarray]]], tmp_path: Path) -> None:
    model = onnx.load(net[0])
    model.graph.output.append(helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["N", 96]))
    with pytest.raises(BadOnnxFile, match="other outputs"):
        f.compare(net[0], save(model, tmp_path / "two.onnx"), net[1])


def test_importance_is_the_energy_of_the_input(tmp_path: Path) -> None:
    """Element (j, i) of MatMul's (in, out) weight multiplies input j; of Gemm's (out, in) weight input i."""
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Gemm", ["h", "b"], ["y"], transB=1)]
    arrays = {"a": sparse((8, 16), 1.0), "b": sparse((12, 16), 1.0, 1)}
    path = save(make(nodes, arrays, [("x", ["N", 8])], [("y", ["N", 12])]), tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32) * np.arange(1, 9, dtype=np.float32)
    found = importance(path, [{"x": x[:25]}, {"x": x[25:]}])
    assert np.allclose(found["a"], np.broadcast_to((x**2).mean(0)[:, None], (8, 16)), rtol=1e-5)
    assert np.allclose(found["b"], np.broadcast_to(((x @ arrays["a"]) ** 2).mean(0), (12, 16)), rtol=1e-4)


def test_importance_of_a_grouped_convolution(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=2)]
    path = save(
        make(nodes, {"w": sparse((6, 2, 3, 3), 1.0)}, [("x", ["N", 4, 5, 5])], [("y", ["N", 6, 3, 3])]),
        tmp_path / "g.onnx",
    )
    x = np.ones((1, 4, 5, 5), np.float32) * np.array([1, 2, 3, 4], np.float32).reshape(1, 4, 1, 1)
    found = importance(path, [{"x": x}])["w"]
    assert found.shape == (6, 2, 3, 3)
    assert found[:, :, 0, 0].tolist() == [[1, 4]] * 3 + [[9, 16]] * 3


def test_importance_predicts_the_output_error(tmp_path: Path) -> None:
    """sum dW^2 E[x^2] is the expected squared error of the output for independent inputs."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    w = sparse((64, 32), 1.0)
    path = save(make(nodes, {"w": w}, [("x", ["N", 64])], [("y", ["N", 32])]), tmp_path / "m.onnx")
    scale = np.linspace(0.1, 3, 64, dtype=np.float32)
    x = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32) * scale
    change = np.random.default_rng(1).normal(size=w.shape).astype(np.float32)
    predicted = (change.astype(np.float64) ** 2 * importance(path, [{"x": x}])["w"]).sum()
    assert ((x @ change) ** 2).sum(1).mean() == pytest.approx(predicted, rel=0.05)


def test_fewer_bytes_at_the_error_of_four_bits(net: tuple[Path, list[dict[str, np.ndarray]]], tmp_path: Path) -> None:
    path, feeds = net
    budget = uniform_error(path, feeds, "packed-cb4").rms_rel
    found = allocate(path, feeds, budget)
    assert set(found.bits) == {name for name in initializers(path) if name.endswith("weight")}
    assert set(found.bits.values()) <= set(BITS)
    assert 0 < found.measured.rms_rel <= budget
    uniform = pack(path, tmp_path / "uniform.onnx", tier="packed-cb4")
    chosen = pack(path, tmp_path / "chosen.onnx", tier="packed-cb8", codes=found.codes)
    assert {t.name: t.values for t in chosen.tensors} == found.codes
    # Decoders of several widths cost nodes, which only a net this small feels: compare what the weights take.
    assert sum(t.bytes for t in chosen.tensors) < sum(t.bytes for t in uniform.tensors)
    again = f.compare(path, tmp_path / "chosen.onnx", feeds)
    assert again.rms_rel == pytest.approx(found.measured.rms_rel)


def test_a_larger_budget_gives_fewer_bits(net: tuple[Path, list[dict[str, np.ndarray]]]) -> None:
    small, large = allocate(net[0], net[1], 0.01), allocate(net[0], net[1], 0.2)
    assert sum(small.bits.values()) > sum(large.bits.values())
    assert small.measured.rms_rel <= 0.01
    assert large.measured.rms_rel <= 0.2


def test_impossible_budget(net: tuple[Path, list[dict[str, np.ndarray]]]) -> None:
    with pytest.raises(ValueError, match="8 bits everywhere"):
        allocate(net[0], net[1], 1e-9)


def test_swapped_weights_are_what_a_rewritten_file_gives(
    net: tuple[Path, list[dict[str, np.ndarray]]], tmp_path: Path
) -> None:
    from exporters.allocation import _Swapper

    model = onnx.load(net[0])
    other = sparse((96, 64), 0.7, 9)
    for tensor in model.graph.initializer:
        if tensor.name == "fc.weight":
            tensor.CopyFrom(onnx.numpy_helper.from_array(other, tensor.name))
    save(model, tmp_path / "other.onnx")
    with _Swapper(net[0]) as swapper:
        got = swapper.run(net[1], {"fc.weight": other})
        same = swapper.run(net[1], {})
    assert f.compare_answers(f.answers(tmp_path / "other.onnx", net[1]), got).max_rel < 1e-5
    assert f.compare_answers(f.answers(net[0], net[1]), same).max_rel < 1e-5
    assert run(net[0])[0].shape == (3, 90)


def test_outputs_that_are_not_finite() -> None:
    left = [[np.array([3.0, np.nan, 4.0, np.inf], np.float32)]]
    near = [[np.array([3.0, np.nan, 4.5, np.inf], np.float32)]]
    elsewhere = [[np.array([np.nan, 3.0, 4.0, np.inf], np.float32)]]
    assert f.compare_answers(left, left) == f.Comparison(0.0, 0.0, 1.0, True, 1, finite=False)
    assert f.compare_answers(left, near).rms_rel == pytest.approx(0.1)
    assert f.compare_answers(left, elsewhere).rms_rel == float("inf")
    assert f.compare_answers([[left[0][0][:1]]], [[left[0][0][:1]]]).finite
