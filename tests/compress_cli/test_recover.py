"""`compress recover`: two checkpoints and unlabelled images in, a nearer network out; exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from compress_cli.app import run as compress
from compress_cli.checkpoint import load_module
from tests.recovery.nets import images, prune_, randomise

NET = """
from torch import nn

def net(width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                         nn.Conv2d(width, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
"""


def build() -> nn.Module:
    space: dict[str, object] = {}
    exec(NET, space)
    return randomise(space["net"]())  # type: ignore[operator]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    dense = build()
    torch.save(dense.state_dict(), tmp_path / "net.pt")
    prune_(dense, 0.6)
    torch.save(dense.state_dict(), tmp_path / "pruned.pt")
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images(80)):
        pixels = (image.permute(1, 2, 0) * 60 + 128).clamp(0, 255).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def call(folder: Path, *more: str) -> list[str]:
    arch = ["--arch", f"{folder / 'net.py'}:net", "--input-shape", "3x8x8", "--preprocess", "none"]
    return ["recover", str(folder / "pruned.pt"), "--original", str(folder / "net.pt"), *arch, *more]


def test_recovers_and_writes_a_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = folder / "out.pt"
    calib = ["--calib", str(folder / "images")]
    assert compress(call(folder, *calib, "-o", str(target), "--json", "-q")) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["recovery"]["after"] < 0.5 * document["recovery"]["before"]
    assert document["recovery"]["images"] == 80
    found = load_module(str(target), arch=f"{folder / 'net.py'}:net")
    before = torch.load(folder / "pruned.pt", weights_only=True)
    for name, tensor in found.state_dict().items():
        if tensor.dim() > 1:
            assert torch.equal(tensor == 0, before[name] == 0)
    assert not torch.equal(found.state_dict()["7.weight"], before["7.weight"])
    # a second run does not overwrite, and text names what was done
    assert compress(call(folder, *calib, "-o", str(target))) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert compress(call(folder, *calib, "-o", str(target), "--overwrite", "-q")) == 0
    assert "least squares" in capsys.readouterr().out


def test_missing_images_and_foreign_originals_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress(call(folder, "-o", str(folder / "out.pt"))) == 2
    assert "--calib" in capsys.readouterr().err
    torch.save({"0.weight": torch.ones(2, 2)}, folder / "net.pt")
    assert compress(call(folder, "--calib", str(folder / "images"), "-o", str(folder / "out.pt"))) == 3
    assert not (folder / "out.pt").exists()


def test_made_up_images_help_and_need_batch_norms(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = folder / "out.pt"
    flags = ["--calib", "synthetic", "-o", str(target), "--overwrite", "--json", "-q"]
    assert compress(call(folder, *flags)) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images"] == "synthetic"
    assert document["recovery"]["after"] < document["recovery"]["before"]
    assert target.exists()
    (folder / "plain.py").write_text(NET.replace("nn.BatchNorm2d(width)", "nn.Identity()"))
    for name in ("net.pt", "pruned.pt"):
        state = torch.load(folder / name, weights_only=True)
        torch.save({key: value for key, value in state.items() if not key.startswith("1.")}, folder / name)
    assert compress(call(folder, *flags, "--arch", f"{folder / 'plain.py'}:net")) == 3
    assert "has none" in json.loads(capsys.readouterr().out)["error"]["message"]
