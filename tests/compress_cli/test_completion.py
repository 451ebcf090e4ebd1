"""What the shell offers: through the real completion protocol, without torch; layer names equal what torch reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress_cli.completion import comma_separated, one_of, targets, tensor_names

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import atexit, sys
from compress_cli.app import run
atexit.register(lambda: sys.stderr.write(str("torch" in sys.modules)))
run([])
"""


def offered(words: str) -> list[str]:
    environment = {**os.environ, "_COMPRESS_COMPLETE": "complete_bash", "COMP_WORDS": f"compress {words}"}
    environment |= {"COMP_CWORD": str(len(words.split(" "))), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False)
    assert done.stderr.endswith("False"), done.stderr
    return done.stdout.split()


def test_methods_of_prune() -> None:
    assert offered("prune model.pt --method ma") == ["magnitude"]


def test_devices_after_mobile() -> None:
    found = offered("bench a.onnx --target mobile:raspberry-pi-5")
    assert found
    assert all("raspberry-pi-5" in word for word in found)


def test_layers_of_the_checkpoint(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 5, 1)))
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in net.state_dict().items()}}, tmp_path / "a.pt"
    )
    assert offered(f"prune {tmp_path / 'a.pt'} --ignore 1.") == ["1.0", "1.0.weight", "1.0.bias"]


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_names_without_unpickling(kind: str, tmp_path: Path) -> None:
    state = nn.MultiheadAttention(4, 2).state_dict()
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    assert sorted(tensor_names(path)) == sorted(state)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"\x80\x02no pickle at all", b"{}" * 40])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_unreadable_files_offer_nothing(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert tensor_names(tmp_path / name) == []
    assert tensor_names(tmp_path / "missing.pt") == []


def test_words_after_a_comma() -> None:
    assert comma_separated(["alds", "channels"])(None, "alds,") == ["alds,channels"]
    assert one_of(["alds", "channels"])(None, "c") == ["channels"]
    assert "cloud-cpu,ssh:" in targets(None, "cloud-cpu,s")
