"""`--score recovery`: chosen by the price after compensation, exact counts, and refused where it cannot work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from compress_cli import recovery
from compress_cli.app import run as compress
from compress_cli.checkpoint import load_module
from compress_cli.recovery import CannotTrace, channel_prices
from tests.recovery.nets import images, randomise

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1))
        self.head = nn.Linear(12, 5)
        self.mix = nn.Bilinear(5, 5, 2)

    def forward(self, x):
        x = self.stem(x)
        y = self.head(torch.relu(x + self.body(x)).mean((2, 3)))
        return torch.cat([y, self.mix(y, y)], 1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    space: dict[str, Any] = {}
    exec(NET, space)
    torch.save(randomise(space["Net"]()).state_dict(), tmp_path / "net.pt")
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images(80)):
        pixels = (image.permute(1, 2, 0) * 60 + 128).clamp(0, 255).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def call(folder: Path, *more: str, calib: bool = True, verb: str = "prune", score: bool = True) -> list[str]:
    arch = ["--arch", f"{folder / 'net.py'}:Net", "--input-shape", "3x8x8", "--preprocess", "none"]
    given = ["--calib", str(folder / "images")] if calib else []
    target = ["-o", str(folder / "run"), "--no-export", "-q"] if verb == "prune" else []
    asked = ["--score", "recovery"] if score else []
    return [verb, str(folder / "net.pt"), *asked, *arch, *given, *target, *more, "--json"]


def pruned(folder: Path, *more: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    assert compress(call(folder, *more, "--overwrite")) == 0
    report = json.loads((folder / "run" / "report.json").read_text())
    module = load_module(str(folder / "run" / "model.pt"), arch=f"{folder / 'net.py'}:Net")
    return report, dict(module.named_parameters())


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_weights_by_price_are_exactly_as_many_as_asked(folder: Path, scope: str, capsys: Any) -> None:
    report, found = pruned(folder, "--sparsity", "0.7", "--scope", scope)
    weights = {name: tensor for name, tensor in found.items() if tensor.dim() > 1}
    zeros = {name: int((tensor == 0).sum()) for name, tensor in weights.items()}
    total = sum(tensor.numel() for tensor in weights.values())
    assert sum(zeros.values()) == report["achieved"][0]["count"] == int(0.7 * total + 0.5)
    assert report["recovery"]["kept"]
    assert zeros["mix.weight"]  # no traced layer multiplies by it: chosen by size
    if scope == "layer":
        assert all(abs(zeros[name] - 0.7 * tensor.numel()) <= 1 for name, tensor in weights.items())
    capsys.readouterr()
    assert compress(call(folder, "--sparsity", "0.7", "--scope", scope, verb="plan")) == 0
    document = json.loads(capsys.readouterr().out)["plan"]
    assert {cut["name"]: cut["zeros_after"] for cut in document["cuts"]} == zeros


def test_channels_by_price_meet_the_budget(folder: Path) -> None:
    report, found = pruned(folder, "--method", "channels", "--max-flops", "60%")
    achieved = report["achieved"][0]
    assert 0 < achieved["count"] <= 0.6 * achieved["out_of"]
    assert report["recovery"]["kept"]
    assert found["head.weight"].shape[0] == 5
    plan = json.loads((folder / "run" / "plan.json").read_text())
    assert plan["options"]["score"] == "recovery"


def test_images_to_recover_from_make_prices_the_default_for_channels_only(folder: Path) -> None:
    def without_score(*more: str, calib: bool) -> None:
        assert compress(call(folder, *more, "--overwrite", calib=calib, score=False)) == 0

    channels = ("--method", "channels", "--max-flops", "60%")
    without_score(*channels, calib=True)
    report = json.loads((folder / "run" / "report.json").read_text())
    assert "channels are ranked by what recovery cannot restore, the default with --calib" in report["notes"]
    assert json.loads((folder / "run" / "plan.json").read_text())["options"]["score"] == "recovery"
    without_score(*channels, calib=False)
    assert json.loads((folder / "run" / "plan.json").read_text())["options"]["score"] == "magnitude"
    without_score("--sparsity", "0.5", calib=True)
    assert json.loads((folder / "run" / "plan.json").read_text())["score"] == "magnitude"


def test_without_recovery_the_run_goes_on_with_batch_norms_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CannotTrace("original", "a branch on values")

    monkeypatch.setattr(recovery, "recover", refuse)
    budget = ("--method", "channels", "--max-flops", "60%")
    assert compress(call(folder, *budget)) == 3  # asked for by name
    assert compress(call(folder, *budget, "--overwrite", score=False)) == 0
    report = json.loads((folder / "run" / "report.json").read_text())
    (said,) = [text for text in report["warnings"] if "a branch on values" in text]
    assert said.startswith("nothing is recovered from --calib but batch norms")
    assert "compress finetune" in said
    assert report["recovery"] is None
    assert report["batchnorm"]["held_out"] > 0


def test_a_run_of_before_the_default_depended_on_the_method_is_resumed(folder: Path, capsys: Any) -> None:
    words = call(folder, "--method", "channels", "--max-flops", "60%", score=False)
    assert compress([*words, "--score", "magnitude"]) == 0  # what a saved configuration held then
    capsys.readouterr()
    assert compress([*words, "--resume"]) == 0
    assert json.loads((folder / "run" / "plan.json").read_text())["options"]["score"] == "magnitude"
    assert compress([*words, "--score", "lamp", "--resume"]) == 2
    assert "--resume with another --score" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]["message"]


FIXED = """
class Fixed(Net):
    def forward(self, x):
        x = self.stem(x).view(-1, 12, 8, 8)
        y = self.head(torch.relu(x + self.body(x)).mean((2, 3)))
        return torch.cat([y, self.mix(y, y)], 1)
"""


def test_units_are_priced_once_for_all_analyses_of_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size in the code freezes the stem in tier 3: the body's units are still those of the first analysis."""
    (folder / "net.py").write_text(NET + FIXED)
    calls: list[int] = []
    compute = channel_prices.channel_prices

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(len(args[2].groups))
        return compute(*args, **more)

    monkeypatch.setattr(channel_prices, "channel_prices", counted)
    words = call(folder, "--method", "channels", "--max-flops", "80%")
    assert compress([word.replace("net.py:Net", "net.py:Fixed") for word in words]) == 0
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["proof"]["tier"] == 3
    assert len(calls) == 1


def test_a_network_without_prices_is_ranked_by_size_unless_prices_were_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise CannotTrace("original", "a branch on values")

    monkeypatch.setattr(channel_prices, "channel_prices", refuse)
    budget = ("--method", "channels", "--max-flops", "60%")
    assert compress(call(folder, *budget)) == 3
    assert "a branch on values" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not (folder / "run").exists()
    assert compress(call(folder, *budget, score=False)) == 0
    assert json.loads((folder / "run" / "plan.json").read_text())["options"]["score"] == "magnitude"
    report = json.loads((folder / "run" / "report.json").read_text())
    assert any("ranked by magnitude" in text and "a branch on values" in text for text in report["warnings"])
    assert report["recovery"]["kept"]


@pytest.mark.parametrize("budget", [("--sparsity", "0.7"), ("--method", "channels", "--max-flops", "60%")])
def test_without_images_it_says_what_to_add(folder: Path, budget: tuple[str, ...], capsys: Any) -> None:
    assert compress(call(folder, *budget, calib=False)) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "--calib DIR" in error["fix"]
    assert not (folder / "run").exists()


def test_a_gradual_schedule_or_a_bare_state_dict_is_refused(folder: Path, capsys: Any) -> None:
    more = ("--sparsity", "0.7", "--schedule", "gradual", "--data", str(folder))
    assert compress(call(folder, *more)) == 2
    assert "chooses once" in json.loads(capsys.readouterr().out)["error"]["message"]
    bare = ["prune", str(folder / "net.pt"), "--score", "recovery", "--sparsity", "0.5", "--json", "-q"]
    assert compress([*bare, "--calib", str(folder / "images"), "-o", str(folder / "run")]) == 3
    assert "--arch" in json.loads(capsys.readouterr().out)["error"]["fix"]
