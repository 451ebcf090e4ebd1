"""`compress export`: checkpoints and ONNX files in every form, proofs, exit codes, nothing left behind on failure."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from compress_cli.app import run as compress
from exporters.packing import pack
from tests.exporters.onnx_nets import convnet, run, save

NET = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 40))
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    space: dict[str, object] = {}
    exec(NET, space)
    torch.manual_seed(0)
    state = space["net"]().state_dict()  # type: ignore[operator]
    for name, tensor in state.items():
        if tensor.dim() > 1:
            tensor[torch.rand_like(tensor) < 0.85] = 0
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    torch.save(state, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def call(checkpoint: Path, *more: str) -> list[str]:
    arch = ["--arch", f"{checkpoint.parent / 'net.py'}:net", "--input-shape", "3x12x12"]
    return ["export", str(checkpoint), *arch, "-o", str(checkpoint.parent / "out.onnx"), *more]


def images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_checkpoint_to_packed_by_default(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress(call(checkpoint, "--json", "-q")) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["weights"] == "packed"
    assert document["verification"]["ok"]
    assert document["verification"]["max_rel"] < 1e-5
    assert document["variant"]["comparison"]["identical"]
    assert document["variant"]["packing"]["folded"] is True
    assert document["bytes"] == (checkpoint.parent / "out.onnx").stat().st_size < document["dense_bytes"]
    assert document["variant"]["files"] == [str(checkpoint.parent / "out.onnx")]
    assert {path.suffix for path in checkpoint.parent.iterdir() if path.is_file()} == {".pt", ".py", ".onnx"}


def test_dense_with_mobile_files(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress(call(checkpoint, "--weights", "dense", "--mobile", "--ort", "--json", "-q")) == 0
    document = json.loads(capsys.readouterr().out)
    folder = checkpoint.parent
    kinds = {node.op_type for node in onnx.load(folder / "out.onnx").graph.node}
    assert "GlobalAveragePool" in kinds
    assert "ReduceMean" not in kinds
    assert {row["engine"] for row in document["mobile"]} == {"nnapi", "coreml mlprogram", "coreml neuralnetwork"}
    assert document["ort"]["ort"] == str(folder / "out.ort")
    assert (folder / "out.ort").stat().st_size == document["ort"]["ort_bytes"]
    assert (folder / "out.required_operators.config").exists()
    assert np.allclose(run(folder / "out.onnx")[0], run(folder / "out.ort")[0], rtol=1e-4, atol=1e-5)


def test_int8_on_images(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = images(checkpoint.parent / "images", 40)
    more = ["--weights", "int8", "--calib", str(folder), "--calibration", "percentile", "--preprocess", "none"]
    assert compress(call(checkpoint, *more)) == 0
    text = capsys.readouterr()
    assert "3 products in int8, 0 in float" in text.out
    assert "40 images" in text.err
    assert "random inputs" not in text.err


def test_any_onnx_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(convnet(0.2), tmp_path / "a.onnx")
    for weights in ("packed-cb4", "packed-cb", "auto"):
        target = tmp_path / f"{weights}.onnx"
        assert compress(["export", str(source), "--weights", weights, "-o", str(target)]) == 0
        assert target.stat().st_size < source.stat().st_size
    pack(source, tmp_path / "p.onnx")
    assert compress(["export", str(tmp_path / "p.onnx"), "--weights", "dense", "-o", str(tmp_path / "d.onnx")]) == 0
    assert "unpacked first" in capsys.readouterr().out
    assert run(tmp_path / "d.onnx")[0].tobytes() == run(source)[0].tobytes()


def test_auto_stays_dense_where_nothing_is_gained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(convnet(1.0), tmp_path / "a.onnx")
    assert compress(["export", str(source), "-o", str(tmp_path / "b.onnx"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["weights"] == "dense"
    assert any("too few zeros" in note for note in document["notes"])


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--weights", "packed-cb9"], 2, "did you mean"),
        (["--weights", "int8", "--calibration", "mean"], 2, "minmax"),
        (["--max-error", "2%"], 2, "packed-cb"),
        (["--weights", "packed-cb", "--max-error", "x"], 2, "not a share"),
        (["--weights", "packed-cb", "--max-error", "150%"], 2, "not a share"),
        (["--weights", "packed-cb", "--max-error", "0.0000001"], 2, "8 bits everywhere"),
        (["--calib", "nowhere"], 3, "nowhere"),
        (["-o", "out.pb"], 2, ".onnx"),
        (["--arch", "torchvision:resnet18"], 2, "is an ONNX file"),
        (["--format", "ncnn"], 2, "ncnn needs pnnx and ncnn, not installed here"),
        (["--format", "ort,mnn"], 2, "pip install MNN"),
        (["--format", "litert"], 2, "pip install litert-torch"),
        (["--format", "executorch"], 2, "pip install executorch"),
        (["--format", "coreml"], 2, "ort, ncnn, mnn, litert, executorch"),
    ],
)
def test_wrong_flags(
    more: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    absent = ("pnnx", "ncnn", "MNN", "_tools", "litert_torch", "ai_edge_litert", "executorch", "torchao")
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in absent else find(name))
    source = save(convnet(0.2), tmp_path / "a.onnx")
    assert compress(["export", str(source), *more]) == code
    text = capsys.readouterr().err
    assert words in text
    assert "Fix:" in text
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_no_way_to_build_the_network(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress(["export", str(checkpoint), "-o", str(checkpoint.parent / "x.onnx"), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert "--arch" in document["error"]["fix"]
    assert not (checkpoint.parent / "x.onnx").exists()


def test_a_form_that_changes_too_much_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = convnet(1.0)
    for tensor in model.graph.initializer:
        if tensor.name == "out.weight":
            array = onnx.numpy_helper.to_array(tensor) * np.float32(1e-9)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    source = save(model, tmp_path / "a.onnx")
    assert compress(["export", str(source), "--weights", "packed-fp16", "-o", str(tmp_path / "b.onnx")]) == 4
    assert "allowed: 0.20%" in capsys.readouterr().err
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["3.weight"][0, 0, 0, 0] = value
    torch.save(state, checkpoint)
    assert compress(call(checkpoint)) == 3
    assert "3.weight holds NaN or infinity" in capsys.readouterr().err
    assert not (checkpoint.parent / "out.onnx").exists()


def test_files_beside_the_onnx_file_are_not_replaced_unasked(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = checkpoint.parent / "out.ort"
    taken.write_bytes(b"mine")
    assert compress(call(checkpoint, "--format", "ort")) == 2
    assert f"{taken} is already there" in capsys.readouterr().err
    assert (taken.read_bytes(), (checkpoint.parent / "out.onnx").exists()) == (b"mine", False)
    config = checkpoint.parent / "out.required_operators.config"
    config.write_text("mine")
    taken.unlink()
    assert compress(call(checkpoint, "--format", "ort")) == 2
    assert f"{config} is already there" in capsys.readouterr().err
    assert sorted(path.name for path in checkpoint.parent.glob("out.*")) == [config.name]
    assert compress(call(checkpoint, "--format", "ort", "--overwrite")) == 0
    assert taken.exists()
    assert config.read_text() != "mine"


def test_an_old_opset_is_the_reason_that_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From opset 13 on there are the operators that unpack weights; the file has zeros enough."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "W"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 64])],
        [onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32), "W")],
    )
    source = tmp_path / "old.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 12)], ir_version=7), source)
    assert compress(["export", str(source), "-o", str(tmp_path / "b.onnx"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["weights"] == "dense"
    assert any("opset 12 has no operators to unpack weights with" in note for note in document["notes"])
