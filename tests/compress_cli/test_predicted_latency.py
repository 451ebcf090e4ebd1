"""`--max-latency mobile:DEVICE=...`: channels and decompositions planned by predicted times; checked on the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compress_cli.app import run
from compress_cli.errors import UsageError
from compress_cli.methods.device_limits import largest_cut
from compress_cli.quantities import parse_limit
from profilers.devices.catalog import find
from profilers.devices.predict import predict
from profilers.onnx_cost import graph_cost

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 64, 3, padding=1)
        self.third = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.third(self.second(self.first(x).relu()).relu()).relu()
        return self.head(x.mean((2, 3)))
"""
PHONE = "mobile:snapdragon-8-gen-2"
FLAGS = ["--arch", "net.py:Net", "--input-shape", "3x40x40", "--no-bench", "-q", "-o", "run"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    namespace: dict[str, Any] = {}
    exec(NET, namespace)  # the same network as the file's
    torch.manual_seed(0)
    torch.save(namespace["Net"]().state_dict(), tmp_path / "net.pt")
    return tmp_path


def report() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path("run/report.json").read_text())
    return document


@pytest.mark.slow
@pytest.mark.parametrize("verb", [["prune", "--method", "channels"], ["decompose"]])
def test_the_written_file_meets_the_limit(verb: list[str], files: Path) -> None:
    code = run([verb[0], "net.pt", *verb[1:], *FLAGS, "--max-latency", f"{PHONE}=60%", "--weights", "dense"])
    found = report()
    (row,) = found["predictions"]
    (gate,) = found["gates"]
    assert (code, gate["name"], gate["passed"]) == (0, "max-latency", True)
    device = find("snapdragon-8-gen-2")
    assert row["compressed_ms"] == pytest.approx(predict(graph_cost(Path("run/model.onnx")), device).ms)
    assert row["compressed_ms"] <= 0.6 * row["original_ms"]
    assert row["compressed_ms"] > 0.4 * row["original_ms"]  # not more than needed
    assert row["median_error"] == device.median_error
    assert run(["check", "run", "--max-latency", f"{PHONE}=60%"]) == 0
    assert run(["check", "run", "--max-latency", f"{PHONE}=20%"]) == 1
    assert run(["check", "run/model.onnx", "--max-latency", f"{PHONE}=1000ms"]) == 0


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("mobile:nokia-3310=60%", "no device is called"),
        (f"{PHONE}=100s", "holds already"),
        ("ssh:pi=60%", "for this machine or a predicted device"),
        (f"{PHONE}=fast", "is not a limit"),
    ],
)
def test_refusals(limit: str, words: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", "net.pt", "--method", "channels", *FLAGS, "--max-latency", limit]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert words in shown
    assert "Fix:" in shown
    assert not Path("run/model.pt").exists()


def test_limits_with_a_target() -> None:
    described = parse_limit("--max-latency", "ms", "model:core=cortex-a76,clock=2.4=20ms")
    assert (described.target, described.value, described.relative) == ("mobile:core=cortex-a76,clock=2.4", 20.0, False)
    here = parse_limit("--max-latency", "ms", "local=80%")
    assert (here.target, here.value, here.relative) == ("", 0.8, True)


def test_the_largest_cut_below_the_limit() -> None:
    """A line with an offset, and steps as channels make them."""
    share, ms = largest_cut(lambda share: 2 + 8 * share, 6.0, 10.0)
    assert 0.95 * 6 < ms <= 6
    assert ms == pytest.approx(2 + 8 * share)
    share, ms = largest_cut(lambda share: 2 + 8 * int(share * 4) / 4, 6.0, 10.0)
    assert ms == 6.0
    with pytest.raises(UsageError, match="falls to"):
        largest_cut(lambda share: 8 + 2 * share, 6.0, 10.0)
