"""`compress inspect` on ONNX files and run folders, and `compress doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compress_cli.app import run
from exporters.packing import pack
from tests.reports import make_report


def write_onnx(file: Path, *, external: bool = False, zeros: float = 0.0) -> Path:
    """y = relu(x W), W: (64, 64), with the batch free."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    weight[rng.random((64, 64)) < zeros] = 0
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "W"], ["h"]), onnx.helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 64])],
        [onnx.numpy_helper.from_array(weight, "W")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], producer_name="test")
    if external:
        onnx.save(model, file, save_as_external_data=True, location="weights.data", size_threshold=0)
    else:
        onnx.save(model, file)
    return file


def inspect_json(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
    assert run(["inspect", *words, "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
def test_an_onnx_file_is_taken_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path, external: bool) -> None:
    file = write_onnx(tmp_path / "m.onnx", external=external)
    found = inspect_json(capsys, str(file))
    assert (found["kind"], found["nodes"], found["operators"]) == ("onnx", 2, {"MatMul": 1, "Relu": 1})
    assert found["initializers"] == {"float": {"count": 1, "elements": 4096, "bytes": 16384}}
    assert found["inputs"] == [{"name": "x", "dtype": "float", "shape": ["batch", 64]}]
    assert found["outputs"] == [{"name": "y", "dtype": "float", "shape": ["batch", 64]}]
    assert found["opsets"] == {"ai.onnx": 18}
    assert found["external"] == (["weights.data"] if external else [])
    assert found["packed"] is None
    assert found["bytes"] == file.stat().st_size


def test_a_packed_file_is_known_as_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dense = write_onnx(tmp_path / "dense.onnx", zeros=0.9)
    pack(dense, tmp_path / "packed.onnx", tier="packed")
    found = inspect_json(capsys, str(tmp_path / "packed.onnx"))
    assert found["packed"] == "packed"
    assert found["initializers"]["uint8"]["bytes"] > 0
    assert run(["inspect", str(tmp_path / "packed.onnx")]) == 0
    assert "compress unpack" in capsys.readouterr().out


def test_a_truncated_onnx_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    whole = write_onnx(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "part.onnx").write_bytes(whole[: len(whole) // 2])
    document = inspect_json(capsys, str(tmp_path / "part.onnx"), code=3)
    assert "cut short or damaged" in document["error"]["message"]


def test_a_damaged_onnx_file_is_shown_or_refused_and_never_crashes(tmp_path: Path) -> None:
    whole = write_onnx(tmp_path / "m.onnx").read_bytes()
    rng, answers = np.random.default_rng(0), set()
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(len(damaged) - 16384, size=4):  # the graph, and what lies around its 16 kB of weights
            damaged[place if place < 200 else -1 - (place % 200)] = rng.integers(256)
        (tmp_path / "d.onnx").write_bytes(damaged)
        answers.add(run(["inspect", str(tmp_path / "d.onnx"), "--json"]))
    assert answers == {0, 3}


def test_text_of_an_onnx_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["inspect", str(write_onnx(tmp_path / "m.onnx"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[1:])) <= 80
    assert any(line.startswith("nodes") and "2: MatMul 1, Relu 1" in line for line in lines)


def test_a_finished_run_prints_its_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = make_report().to_dict()
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    found = inspect_json(capsys, str(tmp_path))
    assert (found["kind"], found["finished"]) == ("run_folder", True)
    assert found["report"] == report
    assert set(found["files"]) == {"report.json", "config.json"}
    assert run(["inspect", str(tmp_path)]) == 0
    assert "zero" in capsys.readouterr().out


def test_an_unfinished_run_says_how_far_it_came(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"verb": "prune", "checkpoint": "net.pt"}', encoding="utf-8")
    (tmp_path / "state.json").write_text('{"stages": {"plan": {}, "train": {}}}', encoding="utf-8")
    found = inspect_json(capsys, str(tmp_path))
    assert (found["finished"], found["stages"], found["report"]) == (False, ["plan", "train"], None)
    assert run(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "unfinished run of prune net.pt" in " ".join(text.split())
    assert "--resume" in text


@pytest.mark.parametrize("content", ["{", "[]", '{"layers": [{"no": 1}]}'])
def test_a_damaged_report_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content, encoding="utf-8")
    document = inspect_json(capsys, str(tmp_path), code=3)
    assert "report.json cannot be read" in document["error"]["message"]


def test_a_folder_that_is_no_run_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    document = inspect_json(capsys, str(tmp_path), code=3)
    assert "is a folder, not a checkpoint" in document["error"]["message"]


def test_doctor_names_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert torch.__version__.startswith(found["required"]["torch"].partition("+")[0])
    assert "CPUExecutionProvider" in found["providers"]
    assert found["torch_device"]["kind"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert run(["doctor"]) == 0
    assert "Everything required is here." in capsys.readouterr().out


def test_doctor_names_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from compress_cli.commands import doctor

    monkeypatch.setattr(doctor, "REQUIRED", (*doctor.REQUIRED, "no-such-package"))
    assert run(["doctor", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["problems"] == ["no-such-package is not installed: pip install no-such-package"]


@pytest.mark.parametrize(
    "words", [["--groups"], ["--arch", "torchvision:resnet18"], ["--input-shape", "3x8x8"], ["--arch-args", "width=4"]]
)
def test_flags_for_networks_are_refused_elsewhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]
) -> None:
    assert run(["inspect", str(write_onnx(tmp_path / "m.onnx")), *words]) == 2
    assert f"{words[0]} needs a PyTorch checkpoint" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text(json.dumps(make_report().to_dict()))
    assert run(["inspect", str(tmp_path / "run"), *words]) == 2
    assert "model.pt" in capsys.readouterr().err
