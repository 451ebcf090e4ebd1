"""Sizes against Python's gzip module; sidecar files; constant memory."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest

from profilers import size
from profilers.size import file_size
from tests.profilers.onnx_files import write_convolution


def test_gzip_bytes_equal_the_standard_library(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(np.random.default_rng(0).standard_normal(700_000).astype(np.float32).tobytes() + bytes(100_000))
    found = file_size(path)
    assert found.bytes == 2_900_000
    assert found.gzip_bytes == len(gzip.compress(path.read_bytes(), 6))
    assert (found.gzip_estimated, found.files) == (False, ("weights.bin",))
    assert file_size(path, gzip=False).gzip_bytes is None


def test_large_files_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "CHUNK", 1 << 14)
    monkeypatch.setattr(size, "EXACT_BYTES", 1 << 18)
    monkeypatch.setattr(size, "SAMPLE_BYTES", 1 << 17)
    weights = np.random.default_rng(0).standard_normal(500_000).astype(np.float32)
    weights[np.random.default_rng(1).random(500_000) < 0.8] = 0.0
    path = tmp_path / "large.bin"
    path.write_bytes(weights.tobytes())
    found = file_size(path)
    assert found.gzip_estimated
    assert found.gzip_bytes == pytest.approx(len(gzip.compress(path.read_bytes(), 6)), rel=0.03)


def test_external_data_is_counted(tmp_path: Path) -> None:
    path = write_convolution(tmp_path / "inline.onnx", channels=512)
    model = onnx.load(path)
    onnx.save(model, tmp_path / "split.onnx", save_as_external_data=True, location="split.data", size_threshold=0)
    found = file_size(tmp_path / "split.onnx")
    assert found.files == ("split.onnx", "split.data")
    assert found.bytes == sum((tmp_path / name).stat().st_size for name in found.files)
    assert found.bytes > path.stat().st_size


def test_a_damaged_onnx_file_still_has_a_size(tmp_path: Path) -> None:
    path = tmp_path / "not.onnx"
    path.write_bytes(b"\x08nonsense" * 5)
    assert file_size(path).bytes == 45


def test_memory_is_constant(tmp_path: Path) -> None:
    path = tmp_path / "zeros.bin"
    with path.open("wb") as file:
        file.truncate(40_000_000)
    tracemalloc.start()
    try:
        file_size(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


def test_absent_files_raise(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_size(tmp_path / "absent.bin")
