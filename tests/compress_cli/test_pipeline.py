"""`compress prune` end to end on tiny networks: exact counts in the written files, ONNX equal to PyTorch, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn

import compress_cli
from compress_cli.app import run

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        return self.fc(self.conv2(x).relu().mean((2, 3)))
"""
RANKED = 3 * 8 * 9 + 8 * 8 * 9 + 8 * 5


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    exec(NET, namespace)  # the same network as the file's
    torch.save(namespace["Net"]().state_dict(), tmp_path / "net.pt")
    return tmp_path


FLAGS = ["--arch", "net.py:Net", "--input-shape", "3x8x8", "--no-bench", "-q"]


def prune(*more: str) -> int:
    return run(["prune", "net.pt", "--sparsity", "0.8", *FLAGS, *more])


def report(folder: str = "run") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(folder, "report.json").read_text())
    return document


def test_zeros_are_counted_in_the_reloaded_file(files: Path) -> None:
    assert prune("-o", "run") == 0
    wanted = int(0.8 * RANKED + 0.5)
    state = torch.load("run/model.pt", weights_only=True)["state_dict"]
    original = torch.load("net.pt", weights_only=True)
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in original.items()}
    ranked = [state[name] for name in ("conv.weight", "conv2.weight", "fc.weight")]
    assert sum(int((tensor == 0).sum()) for tensor in ranked) == wanted
    assert not any(torch.signbit(tensor[tensor == 0]).any() for tensor in ranked)
    achieved = report()["achieved"][0]
    assert (achieved["count"], achieved["asked_count"], achieved["out_of"]) == (wanted, wanted, RANKED)


def test_the_written_model_is_what_load_rebuilds_and_what_onnx_computes(files: Path) -> None:
    assert prune("-o", "run") == 0
    model = compress_cli.load("run/model.pt")
    session = onnxruntime.InferenceSession("run/model.onnx", providers=["CPUExecutionProvider"])
    inputs = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = model(inputs)
    (found,) = session.run(None, {"input": inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_run_folder_holds_what_the_design_lists(files: Path) -> None:
    assert prune("-o", "run") == 0
    names = {path.name for path in Path("run").iterdir()} - {".lock"}
    assert names == {
        *("config.json", "plan.json", "model.pt", "model.onnx", "report.json", "report.html", "log.txt", "state.json")
    }


def test_macs_and_params_of_the_report(files: Path) -> None:
    assert prune("-o", "run") == 0
    found = report()
    macs = 64 * 9 * (3 * 8 + 8 * 8) + 8 * 5
    assert found["complexity_before"]["macs"] == macs
    assert found["complexity_after"]["macs"] == macs
    assert found["complexity_after"]["sparse_macs"] < macs
    assert found["complexity_before"]["params"] == RANKED + 8 + 8 + 8 + 5


def test_bare_tensors_are_pruned_without_an_architecture(files: Path) -> None:
    assert run(["prune", "net.pt", "--sparsity", "50%", "-o", "run", "-q"]) == 0
    assert not Path("run/model.onnx").exists()
    assert any("--arch" in note for note in report()["notes"])
    assert report()["achieved"][0]["count"] == int(0.5 * RANKED + 0.5)


def test_a_pruned_model_is_pruned_further_and_keeps_its_zeros(files: Path) -> None:
    assert prune("-o", "run") == 0
    assert run(["prune", "run/model.pt", "--sparsity", "0.9", "--no-bench", "-o", "again", "-q"]) == 0
    first = torch.load("run/model.pt", weights_only=True)
    second = torch.load("again/model.pt", weights_only=True)
    assert [plan["method"] for plan in second["plans"]] == ["magnitude", "magnitude"]
    for name, tensor in first["state_dict"].items():
        assert (second["state_dict"][name][tensor == 0] == 0).all()


def test_json_is_the_report(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune("-o", "run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == report()


def test_a_second_run_into_the_folder_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune("-o", "run") == 0
    assert prune("-o", "run") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert prune("-o", "run", "--resume") == 0
    assert prune("-o", "run", "--overwrite") == 0


def test_resume_with_other_flags_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune("-o", "run") == 0
    assert run(["prune", "net.pt", "--sparsity", "0.7", *FLAGS, "-o", "run", "--resume"]) == 2
    assert "another --sparsity" in capsys.readouterr().err


def test_a_failed_gate_is_exit_1_with_the_files_written(files: Path) -> None:
    assert prune("-o", "run", "--max-size", "10B") == 1
    assert Path("run/model.onnx").exists()
    assert report()["ok"] is False
    assert prune("-o", "other", "--max-size", "10B", "--exit-zero") == 0


def test_a_wrong_onnx_file_is_exit_4_without_a_model(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import compress_cli.shipping as shipping

    genuine = shipping.export

    def export_something_else(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        changed = torch.nn.Sequential(module, nn.Linear(5, 5))
        return genuine(changed, *args, **kwargs)

    monkeypatch.setattr(shipping, "export", export_something_else)
    assert prune("-o", "run") == 4
    assert not Path("run/model.onnx").exists()
    assert not Path("run/report.json").exists()
    assert not Path("run/.work").exists()


def test_half_precision_files_keep_their_dtype(files: Path) -> None:
    state = torch.load("net.pt", weights_only=True)
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, "net.pt")
    assert prune("-o", "run") == 0
    written = torch.load("run/model.pt", weights_only=True)["state_dict"]
    assert written["conv.weight"].dtype is torch.float16
    assert report()["achieved"][0]["count"] == int(0.8 * RANKED + 0.5)


def test_plan_is_a_dry_run(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in files.iterdir())
    assert run(["plan", "net.pt", "--sparsity", "0.8", "--arch", "net.py:Net", "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan"]["zeros_asked"] == int(0.8 * RANKED + 0.5)
    assert sorted(path.name for path in files.iterdir() if path.name != "__pycache__") == before


def test_a_weak_proof_is_said_aloud(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "net.py").write_text(NET.replace("return self.fc(", "return 0 * self.fc("))
    words = [word for word in FLAGS if word != "-q"]
    assert run(["prune", "net.pt", "--sparsity", "0.8", *words, "-o", "run"]) == 0
    assert "weak proof" in " ".join(capsys.readouterr().out.split())
    assert [text for text in report()["warnings"] if "weak proof" in text]


def test_a_finished_run_is_judged_by_the_limits_that_are_asked_now(files: Path) -> None:
    assert prune("-o", "run") == 0
    assert prune("-o", "run", "--resume", "--max-size", "1GB") == 0
    assert prune("-o", "run", "--resume", "--max-size", "1B") == 1
    assert [(gate["name"], gate["passed"]) for gate in report()["gates"]] == [("max-size", False)]


def test_a_finished_run_without_onnx_does_not_pass_for_one_with(files: Path) -> None:
    assert prune("-o", "run", "--no-export") == 0
    assert prune("-o", "run", "--resume") == 2
    assert prune("-o", "run", "--resume", "--no-export") == 0


def test_weights_that_are_rounded_do_not_pass_for_equal(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in FLAGS if word != "-q"]
    assert run(["prune", "net.pt", "--sparsity", "0.8", *words, "--weights", "packed-cb2", "-o", "run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "ONNX Runtime equals PyTorch before weights are rounded" in printed
    assert f"outputs differ by {report()['packing']['comparison']['rms_rel']:.2%} of their size" in printed
    assert printed.count("checkpoint gzipped") == printed.count("ONNX gzipped") == 1


def test_resuming_nothing_is_said(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in FLAGS if word != "-q"]
    assert run(["prune", "net.pt", "--sparsity", "0.8", *words, "--no-export", "-o", "new", "--resume"]) == 0
    assert "holds nothing to resume" in capsys.readouterr().err


def test_resume_without_a_folder_finds_the_last_one(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert prune() == 0
    capsys.readouterr()
    assert prune("--resume") == 0
    assert "Files: runs/net-magnitude-0.8-2/" in capsys.readouterr().out


def test_the_repeated_command_replaces_the_named_folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["prune", "net.pt", "--sparsity", "0.8", *FLAGS, "-o", "run"]
    monkeypatch.setattr("sys.argv", ["compress", *words])
    assert run(words) == 0
    from compress_cli.checking import read_report
    from compress_cli.render.words import sentences

    again = [line for line in sentences(read_report(Path("run"))) if line.startswith("Again: ")]
    assert again == [f"Again: compress {' '.join(words)} --overwrite"]
