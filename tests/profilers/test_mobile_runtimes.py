"""Mobile runtimes on this host against ONNX Runtime: same outputs, both models timed; absent packages are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from profilers.errors import MeasurementFailed
from profilers.mobile import registry
from profilers.mobile.base import missing, shaped
from profilers.mobile.plain import plain
from profilers.mobile.registry import RUNTIMES, compare_mobile, seeded
from profilers.ort import open_session
from tests.exporters.onnx_nets import convnet, save
from tests.profilers.onnx_files import write_convolution

SLOW_CONVERTERS = ("litert", "executorch")


def need(name: str) -> None:
    absent = missing(RUNTIMES[name])
    if absent:
        pytest.skip(absent)


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("half", [False, True])
def test_outputs_equal_onnx_runtime(name: str, half: bool, tmp_path: Path) -> None:
    need(name)
    runtime = RUNTIMES[name]
    if half and not runtime.half:
        pytest.skip(f"{runtime.title} stores no half precision here")
    source = save(convnet(0.3), tmp_path / "net.onnx")
    signature = plain(source, tmp_path / "plain.onnx")
    assert signature.shapes == ((1, 3, 8, 8),)
    files = runtime.convert(tmp_path / "plain.onnx", signature, tmp_path, half=half)
    assert [path.suffix for path in files] == list(runtime.suffixes)
    inputs = seeded(signature)
    expected = open_session(source).run(None, {"x": inputs[0]})[0]
    for threads in (1, 2):
        (found,) = runtime.open(files, signature, threads)(inputs)
        np.testing.assert_allclose(found, expected, atol=(1e-2 if half else 1e-5) * np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name not in SLOW_CONVERTERS])
def test_both_models_are_timed(name: str, tmp_path: Path) -> None:
    need(name)
    wide = write_convolution(tmp_path / "wide.onnx", 32, 24)
    narrow = write_convolution(tmp_path / "narrow.onnx", 2, 24)
    found = compare_mobile(name, [wide, narrow], budget_s=0.2)
    assert [row.provider for row in found.latencies] == [RUNTIMES[name].title] * 2
    assert found.ratio is not None
    assert found.ratio < 1


@pytest.mark.parametrize("name", RUNTIMES)
def test_without_the_packages_it_says_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install" in (missing(RUNTIMES[name]) or "")
    with pytest.raises(MeasurementFailed, match="not installed here"):
        compare_mobile(name, [tmp_path / "m.onnx"])


class Wrong:
    """A runtime whose outputs are nonsense."""

    name = title = "wrong"
    modules = ("numpy",)
    install, suffixes, half = "", (".w",), False

    def convert(self, model: Path, signature: object, folder: Path, *, half: bool) -> tuple[Path, ...]:
        return (model,)

    def open(self, files: object, signature: object, threads: int) -> object:
        return lambda inputs: [np.zeros((1, 4, 8, 8), np.float32)]


def test_wrong_outputs_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.RUNTIMES, "wrong", Wrong())
    with pytest.raises(MeasurementFailed, match=r"computes other outputs for m\.onnx"):
        compare_mobile("wrong", [write_convolution(tmp_path / "m.onnx")])


def test_files_are_made_plain(tmp_path: Path) -> None:
    signature = plain(write_convolution(tmp_path / "m.onnx", 5, 8), tmp_path / "plain.onnx")
    assert (signature.inputs, signature.outputs) == (("x",), ("y",))
    assert signature.out_shapes == ((1, 5, 8, 8),)
    assert open_session(tmp_path / "plain.onnx").get_inputs()[0].shape == [1, 3, 8, 8]
    with pytest.raises(MeasurementFailed, match="cannot load"):
        plain(Path(__file__), tmp_path / "no.onnx")
    assert [array.shape for array in shaped([np.zeros(320)], signature)] == [(1, 5, 8, 8)]
