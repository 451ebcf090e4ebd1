"""`compress prune --method channels` end to end on tiny networks: budgets, proofs, reloading, every exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import compress_cli
from compress_cli.app import run
from tests.recovery.nets import images

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        return self.fc(self.conv2(x).relu().mean((2, 3)))


class Fixed(Net):
    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        x = x.view(-1, 2, 8, 8, 8).transpose(1, 2).reshape(-1, 16, 8, 8)
        return self.fc(self.conv2(x).relu().mean((2, 3)))
"""
DENSE_MACS = 64 * 9 * (3 * 16 + 16 * 16) + 16 * 5


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    exec(NET, namespace)  # the same network as the file's
    torch.save(namespace["Net"]().state_dict(), tmp_path / "net.pt")
    return tmp_path


def prune(*more: str, arch: str = "net.py:Net") -> int:
    flags = ["--arch", arch, "--input-shape", "3x8x8", "--no-bench", "--no-export", "-q", "-o", "run"]
    return run(["prune", "net.pt", "--method", "channels", *flags, *more])


def report() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path("run", "report.json").read_text())
    return document


def test_half_of_the_macs_is_counted_in_the_reloaded_file(files: Path) -> None:
    assert prune("--max-flops", "50%") == 0
    found = report()
    (asked,) = found["achieved"]
    assert (asked["name"], asked["asked_count"], asked["out_of"]) == ("macs", DENSE_MACS // 2, DENSE_MACS)
    assert 0.4 * DENSE_MACS < asked["count"] <= DENSE_MACS // 2
    assert found["proof"]["passed"]
    assert found["proof"]["tier"] == 1
    model = compress_cli.load("run/model.pt")
    widths = (model.conv.out_channels, model.conv2.out_channels)
    assert 64 * 9 * (3 * widths[0] + widths[0] * widths[1]) + widths[1] * 5 == asked["count"]
    assert model(torch.randn(3, 3, 8, 8)).shape == (3, 5)


def test_sizes_in_the_code_end_in_a_graph_that_reloads(files: Path) -> None:
    assert prune("--max-flops", "20%", arch="net.py:Fixed") == 0
    assert report()["proof"]["tier"] == 4
    model = compress_cli.load("run/model.pt")
    assert type(model).__mro__[1].__name__ == "Fixed"
    assert model.conv.out_channels < 16
    assert model(torch.randn(3, 3, 8, 8)).shape == (3, 5)


def test_flags_reach_the_selection(files: Path) -> None:
    more = ["--round-to", "4", "--min-channels", "8", "--score", "l1", "--scope", "layer", "--ignore", "conv2"]
    assert prune("--max-params", "90%", *more) == 3  # conv2 fixes the width of conv: nothing may go
    assert prune("--max-params", "60%", *more[:-2]) == 0
    plan = json.loads(Path("run", "plan.json").read_text())
    assert (plan["options"]["score"], plan["options"]["scope"], plan["options"]["round_to"]) == ("l1", "layer", 4)
    model = compress_cli.load("run/model.pt")
    assert model.conv.out_channels % 4 == model.conv2.out_channels % 4 == 0
    assert min(model.conv.out_channels, model.conv2.out_channels) >= 8


def test_the_measured_score_looks_at_images_and_is_recorded(files: Path) -> None:
    Path("images").mkdir()
    for number, image in enumerate(images(24)):
        pixels = (image.permute(1, 2, 0) * 60 + 128).clamp(0, 255).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(Path("images", f"{number}.png"))
    assert prune("--max-flops", "50%", "--score", "measured", "--calib", "images", "--preprocess", "none") == 0
    found = report()
    assert found["achieved"][0]["count"] <= DENSE_MACS // 2
    assert found["proof"]["passed"]
    assert json.loads(Path("run", "plan.json").read_text())["options"]["score"] == "measured"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--max-flops 50%"),
        (["--max-size", "50%"], "needs the ONNX file"),
        (["--max-flops", "50%", "--sparsity", "0.5"], "magnitude pruning"),
        (["--max-flops", "50%", "--score", "erk"], "fisher, measured, recovery"),
        (["--max-flops", "50%", "--score", "taylor"], "--calib"),
        (["--max-flops", "50%", "--score", "measured"], "--calib"),
        (["--max-flops", "50%", "--min-channels", "many"], "min_channels"),
        (["--max-flops", "50%", "--ignore", "con3"], "conv"),
        (["--max-flops", "1%"], "--max-flops"),
    ],
)
def test_wrong_wishes_are_usage_errors(
    files: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert prune(*flags) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not Path("run", "model.pt").exists()


def test_widths_that_runtimes_compute_slowly_are_noted_until_they_are_rounded(files: Path) -> None:
    assert prune("--max-flops", "40%") == 0
    widths = {layer["name"]: layer["change"] for layer in report()["layers"] if layer["name"].startswith("conv")}
    assert any("-> 8 output" not in change for change in widths.values())
    assert [note for note in report()["notes"] if "multiple of 8" in note and "--round-to 8" in note]

    assert prune("--max-flops", "40%", "--round-to", "8", "--overwrite") == 0
    assert not [note for note in report()["notes"] if "multiple of 8" in note]
