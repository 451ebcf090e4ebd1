"""ncnn files: made by ncnn's converter, equal to ONNX Runtime; without the packages the reason is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from exporters import ncnn
from exporters.errors import BadOnnxFile
from exporters.feeds import random_feeds
from exporters.packing import pack
from tests.exporters.onnx_nets import convnet, save

installed = pytest.mark.skipif(bool(ncnn.missing_packages()), reason="pnnx and ncnn are not installed")


@installed
@pytest.mark.parametrize("half", [False, True])
def test_equal_to_onnx_runtime(half: bool, tmp_path: Path) -> None:
    source = save(convnet(0.3), tmp_path / "net.onnx")
    pack(source, tmp_path / "packed.onnx")
    feeds = random_feeds(source, 3, batch=2)
    found = ncnn.convert_to_ncnn(tmp_path / "packed.onnx", tmp_path / "net.param", feeds, half_precision=half)
    assert found.bytes == sum((tmp_path / name).stat().st_size for name in ("net.param", "net.bin"))
    assert found.comparison.inputs == 3
    assert found.comparison.max_rel < (1e-2 if half else 1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.bin", "net.onnx", "net.param", "packed.onnx"]


@installed
def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    source = save(convnet(1.0), tmp_path / "net.onnx")
    sizes = [
        ncnn.convert_to_ncnn(source, tmp_path / "n.param", random_feeds(source, 1), half_precision=half).bytes
        for half in (False, True)
    ]
    assert sizes[1] < 0.65 * sizes[0]


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    source = save(convnet(1.0), tmp_path / "net.onnx")
    with pytest.raises(BadOnnxFile, match="pnnx and ncnn"):
        ncnn.convert_to_ncnn(source, tmp_path / "n.param", [{"x": np.zeros((1, 3, 8, 8), np.float32)}])
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
