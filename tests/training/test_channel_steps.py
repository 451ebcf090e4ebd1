"""Channels in steps of cutting and tuning: `combine` with `epochs` of each step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compress_cli.app import run
from compress_cli.demo.net import two_task_cnn

TASK = """
from compress_cli.demo import task as demo
from compress_cli.demo.task import tasks
from torch.utils.data import Subset

def train_data(): return Subset(demo.train_data(), range(96))
def test_data(): return Subset(demo.test_data(), range(48))
"""


def test_each_step_cuts_and_tunes_what_the_one_before_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(two_task_cnn().state_dict(), "original.pt")
    Path("task.py").write_text(TASK)
    command = ["combine", "original.pt", "--arch", "compress_cli.demo.net:two_task_cnn", "--input-shape", "1x8x8"]
    command += ["--task", "task.py", "--batch-size", "32", "--no-export", "--json", "-q", "-o", "run"]
    command += ["--step", "channels:max-flops=80%,epochs=2", "--step", "channels:max-flops=75%,epochs=1"]
    assert run(command) == 0
    last = json.loads(capsys.readouterr().out)
    (first,) = (json.loads(path.read_text()) for path in Path("run/steps").glob("*/report.json"))
    assert (first["training"]["steps"], last["training"]["steps"]) == (6, 3)
    before, between, after = (
        first["complexity_before"]["macs"],
        first["complexity_after"]["macs"],
        last["complexity_after"]["macs"],
    )
    assert 0.7 * before < between <= 0.8 * before
    assert 0.65 * between < after <= 0.75 * between
    assert first["training"]["history"][0]["loss"] > last["training"]["history"][0]["loss"]  # it did not begin anew
