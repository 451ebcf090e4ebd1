"""`compress prune` and `compress export` on ONNX files of every awkward kind, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from compress_cli.app import run as compress
from exporters import files
from exporters.unpacking import unpack
from tests.exporters.onnx_nets import convnet, initializers, make, run, save, sparse


def mixed() -> onnx.ModelProto:
    """A weight used twice, one that is an output, one without a non-zero, a 1x1 tensor, a free batch."""
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["a"]),
        helper.make_node("Gemm", ["a", "shared"], ["b"], transB=1),
        helper.make_node("Mul", ["b", "one"], ["c"]),
        helper.make_node("MatMul", ["c", "given"], ["d"]),
        helper.make_node("MatMul", ["d", "zero"], ["e"]),
        helper.make_node("Add", ["d", "e"], ["y"]),
    ]
    arrays = {
        "shared": sparse((64, 64), 1.0),
        "one": np.full((1, 1), 2, np.float32),
        "given": sparse((64, 64), 1.0, 1),
        "zero": np.zeros((64, 64), np.float32),
    }
    return make(nodes, arrays, [("x", ["N", 64])], [("y", ["N", 64]), ("given", [64, 64])])


def source_of(kind: str, folder: Path) -> Path:
    if kind == "mixed":
        return save(mixed(), folder / "net.onnx")
    if kind == "float16":
        return save(convnet(1.0, dtype="float16"), folder / "net.onnx")
    (folder / "far").mkdir()
    path = folder / "far" / "net.onnx"
    onnx.save(convnet(1.0), path, save_as_external_data=True, location="net.data", size_threshold=0)
    return path


@pytest.mark.parametrize("kind", ["mixed", "float16", "external"])
def test_prune(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = source_of(kind, tmp_path)
    before = initializers(source)
    assert compress(["prune", str(source), "--sparsity", "0.9", "-o", str(tmp_path / "run"), "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    target = tmp_path / "run" / "model.onnx"
    assert document["file"] == str(target)
    assert document["bytes"] == target.stat().st_size < document["bytes_before"]
    assert document["comparison"]["identical"]
    assert document["folded"] is True
    assert json.loads((tmp_path / "run" / "pruning.json").read_text()) == document
    unpack(target, tmp_path / "plain.onnx")
    after = initializers(tmp_path / "plain.onnx")
    ranked = document["pruning"]["layers"]
    zeros = sum(int((after[name] == 0).sum()) for name in ranked)
    assert zeros == document["pruning"]["zeros"] >= document["pruning"]["asked"]
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        stays = after[name] != 0 if name in ranked else np.ones(array.shape, bool)
        assert np.array_equal(after[name][stays], array[stays])
    assert [run(target, batch)[0].shape[0] for batch in (1, 4)] == [1, 4]


@pytest.mark.parametrize("kind", ["mixed", "float16", "external"])
@pytest.mark.parametrize("weights", ["auto", "dense", "packed-cb5", "packed-fp16", "packed-q8"])
def test_export(kind: str, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = source_of(kind, tmp_path), tmp_path / "out.onnx"
    assert compress(["export", str(source), "--weights", weights, "-o", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "identical outputs" in shown or "outputs differ by" in shown
    for batch in (1, 3):
        for left, right in zip(run(source, batch), run(target, batch), strict=True):
            assert np.abs(left - right).max() <= (0 if weights in ("auto", "dense") else 0.2) * np.abs(left).max()


def test_weights_beside_a_file_follow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit of one file (lowered here) the result has a weights file of its own name."""
    source = source_of("external", tmp_path)
    monkeypatch.setattr(files, "ONE_FILE_BYTES", 10_000)
    assert compress(["export", str(source), "--weights", "dense", "-o", str(tmp_path / "out.onnx"), "-q"]) == 0
    assert (tmp_path / "out.onnx.data").stat().st_size > 80_000
    assert compress(["prune", str(source), "--sparsity", "0.5", "-o", str(tmp_path / "half.onnx"), "-q"]) == 0
    assert run(tmp_path / "out.onnx")[0].tobytes() == run(source)[0].tobytes()
    assert run(tmp_path / "half.onnx")[0].shape == (3, 90)


def test_int8_of_float16_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = source_of("float16", tmp_path)
    assert compress(["export", str(source), "--weights", "int8", "-o", str(tmp_path / "out.onnx")]) == 3
    assert "float16" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--sparsity", "0.9", "--epochs", "3"], 2, "--epochs needs the PyTorch network"),
        (["--sparsity", "0.9", "--max-flops", "50%"], 2, "--max-flops needs"),
        (["--method", "channels", "--sparsity", "0.5"], 2, "by magnitude only"),
        ([], 2, "--sparsity 0.9"),
        (["--sparsity", "0.9", "--ignore", "nothing*"], 2, "nothing*"),
        (["--sparsity", "1.5"], 2, "no weight"),
    ],
)
def test_what_an_onnx_file_does_not_allow(
    more: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(convnet(1.0), tmp_path / "net.onnx")
    assert compress(["prune", str(source), *more, "-o", str(tmp_path / "run")]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_weight_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    tiny = make(nodes, {"w": np.full((1, 1), 2, np.float32)}, [("x", ["N", 1])], [("y", ["N", 1])])
    source = save(tiny, tmp_path / "net.onnx")
    assert compress(["prune", str(source), "--sparsity", "0.9", "-o", str(tmp_path / "run")]) == 2
    assert "every tensor keeps" in capsys.readouterr().err
    for weights in ("auto", "packed-cb4", "int8"):
        assert compress(["export", str(source), "--weights", weights, "-o", str(tmp_path / f"{weights}.onnx")]) == 0
    zero = make(nodes, {"w": np.zeros((40, 40), np.float32)}, [("x", ["N", 40])], [("y", ["N", 40])])
    source = save(zero, tmp_path / "zero.onnx")
    assert compress(["export", str(source), "-o", str(tmp_path / "small.onnx")]) == 0
    assert (tmp_path / "small.onnx").stat().st_size < 400


def test_outputs_that_are_not_finite_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Sqrt", ["h"], ["y"])]
    model = make(nodes, {"w": sparse((64, 64), 0.1)}, [("x", ["N", 64])], [("y", ["N", 64])])
    source = save(model, tmp_path / "net.onnx")
    for weights in ("packed", "packed-q8"):
        code = compress(["export", str(source), "--weights", weights, "-o", str(tmp_path / f"{weights}.onnx")])
        text = capsys.readouterr().err
        assert (code == 0 and "not finite" in text) or (code == 4 and "differ" in text)
        assert code == 0 or weights != "packed"
