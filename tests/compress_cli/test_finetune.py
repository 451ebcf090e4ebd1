"""`compress finetune`: zeros of a compressed model stay, a teacher is read from its file, errors name the fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import compress_cli
from compress_cli.app import run
from compress_cli.demo.net import two_task_cnn

TASK = """
from compress_cli.demo import task as demo
from compress_cli.demo.task import tasks
from torch.utils.data import Subset

def train_data(): return Subset(demo.train_data(), range(128))
def test_data(): return Subset(demo.test_data(), range(64))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (tmp_path / "task.py").write_text(TASK)
    torch.save(two_task_cnn().state_dict(), tmp_path / "original.pt")
    return tmp_path


ARCH = ["--arch", "compress_cli.demo.net:two_task_cnn", "--input-shape", "1x8x8"]
QUICK = ["--no-export", "--json", "-q"]


def test_zeros_stay_and_the_teacher_is_the_original(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", "original.pt", *ARCH, "--sparsity", "0.8", "-o", "pruned", *QUICK]) == 0
    capsys.readouterr()
    command = ["finetune", "pruned/model.pt", "--task", "task.py", "--epochs", "1", "--teacher", "original.pt"]
    assert run([*command, "-o", "tuned", *QUICK]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["training"]["distill"] == 0.5
    asked = report["achieved"][0]
    assert asked["count"] == asked["asked_count"] > 0
    before, after = compress_cli.load("pruned/model.pt"), compress_cli.load("tuned/model.pt")
    changed = False
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        if old.dim() > 1:
            assert torch.equal(old == 0, new == 0), name
            changed = changed or not torch.equal(old, new)
    assert changed
    assert {row["name"] for row in report["tasks"]} == {"digit", "parity"}
    assert (folder / "tuned" / "history.csv").exists()


@pytest.mark.parametrize("schedule", ["gradual", "st3", "acdc"])
def test_prune_while_training_from_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str], schedule: str
) -> None:
    command = ["prune", "original.pt", *ARCH, "--sparsity", "0.9", "--task", "task.py", "--epochs", "1"]
    assert run([*command, "--schedule", schedule, "--batch-size", "8", "-o", "run", *QUICK]) == 0
    report = json.loads(capsys.readouterr().out)
    asked = report["achieved"][0]
    assert asked["count"] == asked["asked_count"]
    loaded = compress_cli.load("run/model.pt")
    zeros = sum(int((w == 0).sum()) for w in loaded.parameters() if w.dim() > 1)
    assert zeros == asked["count"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "finetune needs training data"),
        (["--task", "task.py", "--epochs", "0"], "--epochs 0 trains nothing"),
        (["--task", "task.py", "--recipe", "emma=1"], "not NAME=VALUE"),
        (["--task", "nowhere.py"], "nowhere.py does not exist"),
        (["--data", "nowhere"], "--data nowhere does not exist"),
        (["--task", "task.py", "--teacher", "nowhere.pt"], "nowhere.pt"),
        (["--task", "task.py", "--device", "tpu"], "--device 'tpu'"),
    ],
)
def test_errors_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run(["finetune", "original.pt", *ARCH, *flags, "-o", "out", "-q"]) in (2, 3)
    error = capsys.readouterr().err
    assert message in error
    assert "Fix:" in error


def test_data_that_does_not_fit_the_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for part in ("train", "test"):
        for name in ("even", "odd", "neither"):
            (folder / "images" / part / name).mkdir(parents=True)
            Image.new("L", (8, 8), 100).save(folder / "images" / part / name / "0.png")
    assert run(["finetune", "original.pt", *ARCH, "--data", "images", "-o", "out", "-q"]) == 3
    assert "the data has 3 classes, the network 10 outputs" in capsys.readouterr().err
