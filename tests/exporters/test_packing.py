"""Packed files: smaller, equal to the dense ones bit for bit, folded by the runtime, and back again by `unpack`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from exporters import files, layout
from exporters.errors import BadOnnxFile
from exporters.folding import decoder_nodes
from exporters.packing import TIERS, PackResult, folded, pack, tier_code
from exporters.unpacking import unpack
from tests.exporters.onnx_nets import convnet, initializers, make, run, save, sparse

WEIGHTS = ["c1.weight", "c2.weight", "fc.weight", "out.weight"]


def packed(
    model: onnx.ModelProto, folder: Path, tier: str = "packed", **options: object
) -> tuple[Path, Path, PackResult]:
    source, target = save(model, folder / "dense.onnx"), folder / "packed.onnx"
    return source, target, pack(source, target, tier=tier, **options)  # type: ignore[arg-type]


def same_outputs(first: Path, second: Path, batches: tuple[int, ...] = (1, 3)) -> None:
    for batch in batches:
        for left, right in zip(run(first, batch), run(second, batch), strict=True):
            assert left.dtype == right.dtype
            assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("opset", [13, 17, 20])
def test_lossless_file(density: float, opset: int, tmp_path: Path) -> None:
    source, target, result = packed(convnet(density, opset=opset), tmp_path)
    assert result.folded is True
    assert result.bytes_before == source.stat().st_size
    assert result.bytes_after == target.stat().st_size < result.bytes_before
    assert result.smaller
    assert sorted(t.name for t in result.tensors) == WEIGHTS
    same_outputs(source, target)
    model = onnx.load(target)
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["x", "y"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert {"c1.bias", "fc.bias"} <= {tensor.name for tensor in model.graph.initializer}


@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_restores_what_it_promises(tier: str, tmp_path: Path) -> None:
    """For codebooks: the squared error of normal values by Panter and Dite (1951), sqrt(3) pi / 2 * 4^-bits."""
    source, target, result = packed(convnet(0.15), tmp_path, tier)
    assert result.folded is True
    assert unpack(target, tmp_path / "plain.onnx") == tuple(name for name in _order(target) if name in WEIGHTS)
    same_outputs(target, tmp_path / "plain.onnx")
    before, after = initializers(source), initializers(tmp_path / "plain.onnx")
    assert before.keys() == after.keys()
    for name in before:
        error, scale = np.abs(after[name] - before[name]), np.abs(before[name]).max()
        if tier_code(tier).startswith("cb"):
            assert (error**2).sum() <= 2.73 * 4.0 ** -int(tier_code(tier)[2:]) * (before[name] ** 2).sum()
        else:
            assert error.max() <= _promise(tier) * scale
        assert np.array_equal(after[name] == 0, before[name] == 0) or tier_code(tier).startswith("q")


def _promise(tier: str) -> float:
    """Largest error relative to the largest weight: half a step of a uniform code."""
    code = tier_code(tier)
    if code in ("f32", "f16"):
        return {"f32": 0.0, "f16": 2**-11}[code]
    return 0.52 / (2 ** (int(code[1:]) - 1) - 1)


def _order(path: Path) -> list[str]:
    """Outputs of decoders in graph order."""
    return [name for node in decoder_nodes(onnx.load(path).graph) for name in node.output]


def test_smaller_codes_give_smaller_files(tmp_path: Path) -> None:
    sizes = {tier: packed(convnet(0.15), tmp_path, tier)[2].bytes_after for tier in TIERS}
    assert sizes["packed"] > sizes["packed-fp16"] > sizes["packed-q8"] > sizes["packed-q4"] > sizes["packed-q2"]
    assert sizes["packed-cb8"] > sizes["packed-cb4"] > sizes["packed-cb2"]


def test_size_is_close_to_the_entropy_bound(tmp_path: Path) -> None:
    """A layer of a million weights: index and values within 2 % of order-0 entropy, nodes included."""
    array = sparse((1000, 1000), 0.1)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = make(nodes, {"w": array}, [("x", ["N", 1000])], [("y", ["N", 1000])])
    _, target, result = packed(model, tmp_path)
    kept = np.count_nonzero(array)
    density = kept / array.size
    bits = -density * np.log2(density) - (1 - density) * np.log2(1 - density)
    bound = array.size * bits / 8 + kept * 4
    assert result.bound_bytes == pytest.approx(bound, rel=1e-3)
    assert bound <= target.stat().st_size <= 1.02 * bound
    assert target.stat().st_size < len(gzip.compress((tmp_path / "dense.onnx").read_bytes(), 6))


@pytest.mark.parametrize("tier", ["packed", "packed-q8", "packed-cb4"])
def test_reference_evaluator_agrees(tier: str, tmp_path: Path) -> None:
    """An independent runtime that does not fold."""
    _, target, _ = packed(convnet(0.1), tmp_path, tier)
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    expected = run(target, 3)[0]
    got = ReferenceEvaluator(onnx.load(target)).run(None, {"x": x})[0]
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_without_optimisation_the_answer_is_the_same(tmp_path: Path) -> None:
    source, target, _ = packed(convnet(0.1), tmp_path)
    for left, right in zip(run(source, optimise=False), run(target, optimise=False), strict=True):
        assert left.tobytes() == right.tobytes()


def test_folded_says_no_where_a_decoder_stays(tmp_path: Path) -> None:
    """NonZero is not folded by ONNX Runtime, so what hangs on it stays."""
    nodes = [
        helper.make_node("NonZero", ["m"], ["i"]),
        helper.make_node("Cast", ["i"], ["j"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["j", "zero", "one"], ["k"]),
        helper.make_node("Mul", ["x", "k"], ["y"]),
    ]
    arrays = {"m": np.arange(9, dtype=np.float32), "zero": np.zeros(1, np.int64), "one": np.ones(1, np.int64)}
    path = save(make(nodes, arrays, [("x", ["N", 8])], [("y", ["N", 8])]), tmp_path / "nz.onnx")
    assert folded(path)  # nothing of ours in it: the decoder is the part below NonZero only
    _, target, result = packed(convnet(0.1), tmp_path)
    assert result.folded
    model = onnx.load(target)
    assert decoder_nodes(model.graph)


def test_dense_weights(tmp_path: Path) -> None:
    """Nothing to gain losslessly: a copy. Lossy tiers shrink dense weights too."""
    source, target, result = packed(convnet(1.0), tmp_path)
    assert (result.tensors, result.smaller, result.bytes_after) == ((), False, result.bytes_before)
    assert target.read_bytes() == source.read_bytes()
    assert any("unchanged copy" in note for note in result.notes)
    assert {left.name for left in result.left} >= set(WEIGHTS)
    _, _, half = packed(convnet(1.0), tmp_path, "packed-fp16")
    assert half.folded
    assert {t.index for t in half.tensors} == {"none"}
    assert half.bytes_after < 0.6 * half.bytes_before


def test_zero_tensor_and_single_element(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "zero"], ["z"]),
        helper.make_node("MatMul", ["z", "some"], ["s"]),
        helper.make_node("Mul", ["s", "one"], ["y"]),
    ]
    arrays = {
        "zero": np.zeros((40, 40), np.float32),
        "some": sparse((40, 60), 0.1),
        "one": np.full((1, 1), 2, np.float32),
    }
    source, target, result = packed(make(nodes, arrays, [("x", ["N", 40])], [("y", ["N", 60])]), tmp_path)
    assert {t.name: t.index for t in result.tensors}["zero"] == "zero"
    assert result.folded
    same_outputs(source, target)
    unpack(target, tmp_path / "plain.onnx")
    assert all(initializers(tmp_path / "plain.onnx")[name].tobytes() == a.tobytes() for name, a in arrays.items())


def test_shared_tensor_is_packed_once(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    model = make(nodes, {"w": sparse((64, 64), 0.1)}, [("x", ["N", 64])], [("y", ["N", 64])])
    source, target, result = packed(model, tmp_path)
    assert [t.name for t in result.tensors] == ["w"]
    assert result.folded
    same_outputs(source, target)


def test_initializer_that_is_an_output_stays(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    arrays = {"w": sparse((64, 64), 0.1), "v": sparse((64, 64), 0.1, 1)}
    model = make(nodes, arrays, [("x", ["N", 64])], [("y", ["N", 64]), ("w", [64, 64])])
    source, target, result = packed(model, tmp_path)
    assert [t.name for t in result.tensors] == ["v"]
    assert [(left.name, left.reason) for left in result.left] == [("w", "it is an output of the graph")]
    same_outputs(source, target)


def test_initializers_among_the_inputs(tmp_path: Path) -> None:
    """A default that callers may replace stays; before IR 4 every initializer had to be listed and is freed."""
    model = convnet(0.1)
    model.graph.input.append(helper.make_tensor_value_info("out.weight", TensorProto.FLOAT, [96, 90]))
    source, target, result = packed(model, tmp_path)
    assert "out.weight" in {left.name for left in result.left}
    assert [v.name for v in onnx.load(target).graph.input] == ["x", "out.weight"]
    same_outputs(source, target)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        if tensor.name != "out.weight":
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    source, target, result = packed(model, tmp_path)
    assert "out.weight" in {t.name for t in result.tensors}
    assert [v.name for v in onnx.load(target).graph.input] == ["x"]
    assert result.folded


def test_half_precision_model(tmp_path: Path) -> None:
    source, target, result = packed(convnet(0.1, dtype="float16"), tmp_path)
    assert result.folded
    assert {t.dtype for t in result.tensors} == {"float16"}
    same_outputs(source, target)
    source, target, result = packed(convnet(0.1, dtype="float16"), tmp_path, "packed-cb4")
    assert result.folded
    unpack(target, tmp_path / "plain.onnx")
    assert initializers(tmp_path / "plain.onnx")["c2.weight"].dtype == np.float16


def test_negative_zeros_become_positive_and_are_counted(tmp_path: Path) -> None:
    model = convnet(0.1)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name in WEIGHTS:
            array[array == 0] = -0.0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    source, target, result = packed(model, tmp_path)
    assert result.negative_zeros == sum(t.dense_bytes // 4 - t.nonzero for t in result.tensors)
    assert result.tensors
    for left, right in zip(run(source), run(target), strict=True):
        assert np.array_equal(left, right)


def test_weights_above_the_single_file_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = convnet(0.1)
    source = tmp_path / "big.onnx"
    onnx.save(model, source, save_as_external_data=True, location="big.data", size_threshold=0)
    before = source.stat().st_size + (tmp_path / "big.data").stat().st_size
    result = pack(source, tmp_path / "one.onnx")
    assert result.files == (tmp_path / "one.onnx",)
    assert result.bytes_before == pytest.approx(before, rel=0.05)
    assert result.folded
    same_outputs(source, tmp_path / "one.onnx")
    monkeypatch.setattr(files, "ONE_FILE_BYTES", 1000)
    result = pack(source, tmp_path / "two.onnx")
    assert result.files == (tmp_path / "two.onnx", tmp_path / "two.onnx.data")
    assert result.bytes_after == sum(path.stat().st_size for path in result.files)
    assert result.folded
    same_outputs(source, tmp_path / "two.onnx")
    unpack(tmp_path / "two.onnx", tmp_path / "plain.onnx")
    same_outputs(source, tmp_path / "plain.onnx")


def test_graph_inside_a_node(tmp_path: Path) -> None:
    """If-branches use weights of the outer graph; names inside must survive the renaming."""
    branch = [
        helper.make_graph(
            [helper.make_node("MatMul", ["h", name], ["0"]), helper.make_node("Relu", ["0"], [f"{name}_out"])],
            name, [], [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name in ("v", "w")
    ]  # fmt: skip
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("ReduceSum", ["h"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "limit"], ["big"]),
        helper.make_node("If", ["big"], ["y"], then_branch=branch[0], else_branch=branch[1]),
    ]
    arrays = {"v": sparse((64, 64), 0.1), "w": sparse((64, 64), 0.1, 1), "limit": np.array(0, np.float32)}
    model = make(nodes, arrays, [("x", ["N", 64])], [("y", ["N", 64])])
    source, target, result = packed(model, tmp_path)
    assert sorted(t.name for t in result.tensors) == ["v", "w"]
    assert result.folded
    same_outputs(source, target)
    assert sorted(unpack(target, tmp_path / "plain.onnx")) == ["v", "w"]
    same_outputs(source, tmp_path / "plain.onnx")


def test_constant_nodes_are_weights_too(tmp_path: Path) -> None:
    array = sparse((64, 64), 0.1)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(array)),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    source, target, result = packed(make(nodes, {}, [("x", ["N", 64])], [("y", ["N", 64])]), tmp_path)
    assert [t.name for t in result.tensors] == ["w"]
    same_outputs(source, target)


def test_lossy_tiers_leave_what_is_no_product_exact(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "table"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    arrays = {"table": sparse((64, 64), 0.1), "w": sparse((64, 64), 0.1, 1)}
    _, target, result = packed(make(nodes, arrays, [("x", [64, 64])], [("y", [64, 64])]), tmp_path, "packed-cb4")
    assert {t.name: t.values for t in result.tensors} == {"table": "native", "w": "cb4"}
    unpack(target, tmp_path / "plain.onnx")
    plain = initializers(tmp_path / "plain.onnx")
    assert plain["table"].tobytes() == arrays["table"].tobytes()
    assert plain["w"].tobytes() != arrays["w"].tobytes()


def test_codes_by_name_and_importance(tmp_path: Path) -> None:
    model = convnet(0.3)
    array = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "c2.weight")
    mass = np.where(np.abs(array) > 0.15, 1000.0, 1.0)
    errors = []
    for importance in ({}, {"c2.weight": mass}):
        _, target, result = packed(model, tmp_path, "packed-cb3", codes={"fc.weight": "q8"}, importance=importance)
        assert {t.name: t.values for t in result.tensors}["fc.weight"] == "q8"
        unpack(target, tmp_path / "plain.onnx")
        errors.append(float((((initializers(tmp_path / "plain.onnx")["c2.weight"] - array) ** 2) * mass).sum()))
    assert errors[1] < errors[0]


def test_numbers_that_are_not_finite_stay_exact(tmp_path: Path) -> None:
    array = sparse((64, 64), 0.1)
    array[0, 0] = np.inf
    model = make([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": array}, [("x", ["N", 64])], [("y", ["N", 64])])
    _, target, result = packed(model, tmp_path, "packed-cb4")
    assert [t.values for t in result.tensors] == ["native"]
    unpack(target, tmp_path / "plain.onnx")
    assert initializers(tmp_path / "plain.onnx")["w"].tobytes() == array.tobytes()


def test_old_opset_is_left_alone_with_a_note(tmp_path: Path) -> None:
    source, target, result = packed(convnet(0.1, opset=12), tmp_path)
    assert target.read_bytes() == source.read_bytes()
    assert "opset 12" in result.notes[0]


def test_unpack_of_a_plain_file_is_a_copy(tmp_path: Path) -> None:
    source = save(convnet(0.1), tmp_path / "dense.onnx")
    assert unpack(source, tmp_path / "copy.onnx") == ()
    assert source.read_bytes() == (tmp_path / "copy.onnx").read_bytes()


def test_packing_is_deterministic_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    _, target, _ = packed(convnet(0.1), tmp_path, "packed-cb4")
    first = target.read_bytes()
    packed(convnet(0.1), tmp_path, "packed-cb4")
    assert target.read_bytes() == first
    again = pack(target, tmp_path / "again.onnx")
    assert again.folded
    same_outputs(target, tmp_path / "again.onnx")


@pytest.mark.parametrize("content", [None, b"", b"no model", b"\x08"])
def test_unreadable_files_have_a_reason(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    for work in (pack, unpack):
        with pytest.raises(BadOnnxFile, match=r"bad\.onnx"):
            work(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_missing_weights_file(tmp_path: Path) -> None:
    onnx.save(convnet(0.1), tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    (tmp_path / "a.data").unlink()
    with pytest.raises(BadOnnxFile, match=r"a\.data"):
        pack(tmp_path / "a.onnx", tmp_path / "b.onnx")


@pytest.mark.parametrize("tier", ["dense", "packed-q1", "packed-cb9", "int8", "packed-f16", ""])
def test_unknown_tier(tier: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown tier"):
        tier_code(tier)


def test_result_as_json(tmp_path: Path) -> None:
    result = packed(convnet(0.1), tmp_path)[2]
    document = json.loads(json.dumps(result.to_dict()))
    assert document["smaller"] is True
    assert document["tensors"][0]["name"] == result.tensors[0].name
    assert document["bytes_after"] == result.bytes_after


@pytest.mark.parametrize("tier", ["packed", "packed-fp16", "packed-q8", "packed-q4", "packed-cb4"])
def test_large_tensors_use_the_byte_gap_index(tier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "GAP8_ELEMENTS", 5000)
    monkeypatch.setattr(layout, "JOIN_BELOW", 5000)
    source, target, result = packed(convnet(0.05), tmp_path, tier)
    assert {t.name: t.index for t in result.tensors}["c2.weight"] == "gap8"
    assert any(note.startswith("c2.weight: unpacking") for note in result.notes)
    assert result.folded
    if tier == "packed":
        same_outputs(source, target)


def test_a_large_file_says_what_loading_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, small = packed(convnet(0.1), tmp_path)
    assert not any("while a runtime loads the file" in note for note in small.notes)
    monkeypatch.setattr("exporters.packing.LARGE", sum(t.dense_bytes for t in small.tensors))
    _, _, large = packed(convnet(0.1), tmp_path)
    assert any("--weights dense where that is too much" in note for note in large.notes)
