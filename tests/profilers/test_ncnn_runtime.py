"""ncnn on this host against ONNX Runtime: same outputs, both models timed. Needs the packages ncnn and pnnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from profilers.errors import MeasurementFailed
from profilers.ncnn_runtime import available, compare_ncnn, convert, inference
from tests.profilers.onnx_files import write_convolution


def need_ncnn() -> None:
    missing = available()
    if missing:
        pytest.skip(missing)


def test_outputs_equal_onnx_runtime_and_both_are_timed(tmp_path: Path) -> None:
    need_ncnn()
    wide = write_convolution(tmp_path / "wide.onnx", 32, 24)
    narrow = write_convolution(tmp_path / "narrow.onnx", 2, 24)
    files = convert(wide, tmp_path)
    assert files.shape == (3, 24, 24)
    x = np.random.default_rng(0).standard_normal(files.shape).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(wide)).run(None, {"x": x[None]})[0][0]
    np.testing.assert_allclose(inference(files, 1)(), expected, rtol=1e-4, atol=1e-4)
    found = compare_ncnn([wide, narrow], budget_s=0.2)
    assert [row.provider for row in found.latencies] == ["ncnn", "ncnn"]
    assert found.ratio is not None
    assert found.ratio < 1


def test_without_the_packages_the_reason_is_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install ncnn pnnx" in (available() or "")
    with pytest.raises(MeasurementFailed, match="the package ncnn is not installed"):
        convert(tmp_path / "m.onnx", tmp_path)
