"""`compress demo` with each of its methods, on a network that is not trained first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import compress_cli
from compress_cli.app import run
from compress_cli.demo import train
from compress_cli.demo.net import two_task_cnn


def test_a_second_method_starts_from_the_network_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    trained: list[int] = []
    network = two_task_cnn().eval()
    monkeypatch.setattr(train, "train_original", lambda seed: trained.append(seed) or network)
    assert run(["demo", "--method", "alds", "--max-params", "60%", "--epochs", "0", "-q", "-o", "demo"]) == 0
    report = json.loads(Path("demo/alds/report.json").read_text())
    whole = sum(parameter.numel() for parameter in network.parameters())
    assert report["complexity_after"]["params"] <= 0.6 * whole
    model = compress_cli.load("demo/alds/model.pt", arch="compress_cli.demo.net:two_task_cnn")
    assert sum(parameter.numel() for parameter in model.parameters()) == report["complexity_after"]["params"]
    assert run(["demo", "--sparsity", "2", "-q", "-o", "demo"]) == 2  # reads the same original before it refuses
    assert trained == [0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "svd"], "'svd' is not part of the demo"),
        (["--method", "alds", "--sparsity", "0.5"], "--sparsity has no meaning for --method alds"),
        (["--max-params", "50%"], "--max-params has no meaning for --method magnitude"),
    ],
)
def test_flags_of_other_methods_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(["demo", *words, "-o", str(tmp_path / "demo")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "demo").exists()
