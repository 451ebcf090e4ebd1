"""Static int8: fused by the runtime, packed weights equal to unpacked ones bit for bit, close to the float file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporters.errors import BadOnnxFile
from exporters.feeds import compare, random_feeds
from exporters.int8 import METHODS, fusion, quantize_int8
from exporters.packing import pack
from exporters.unpacking import unpack
from tests.exporters.onnx_nets import convnet, run, save


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(convnet(0.1), tmp_path_factory.mktemp("int8") / "net.onnx")


@pytest.mark.parametrize("method", METHODS)
def test_every_calibration_fuses_packs_and_is_close(method: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    result = quantize_int8(source, target, random_feeds(source, 6, batch=4), method=method)
    assert result.fusion.complete
    assert sum(result.fusion.int8.values()) == 4
    assert result.packing.folded
    assert result.packing.bytes_after == target.stat().st_size < result.qdq_bytes < source.stat().st_size
    assert compare(source, target, random_feeds(source, 2, batch=4, seed=3)).rms_rel < 0.1


def test_packed_equals_unpacked_bit_for_bit(source: Path, tmp_path: Path) -> None:
    feeds = random_feeds(source, 4, batch=2)
    quantize_int8(source, tmp_path / "packed.onnx", feeds)
    quantize_int8(source, tmp_path / "plain.onnx", feeds, packed=False)
    assert fusion(tmp_path / "packed.onnx") == fusion(tmp_path / "plain.onnx")
    unpack(tmp_path / "packed.onnx", tmp_path / "back.onnx")
    for batch in (1, 5):
        expected = run(tmp_path / "plain.onnx", batch)[0]
        assert run(tmp_path / "packed.onnx", batch)[0].tobytes() == expected.tobytes()
        assert run(tmp_path / "back.onnx", batch)[0].tobytes() == expected.tobytes()


def test_zeros_stay_zeros(source: Path, tmp_path: Path) -> None:
    quantize_int8(source, tmp_path / "q.onnx", random_feeds(source, 2), packed=False)
    before = {t.name: numpy_helper.to_array(t) for t in onnx.load(source).graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    for name in ("c1.weight", "c2.weight", "fc.weight", "out.weight"):
        stored = after[f"{name}_quantized"]
        assert stored.dtype == np.int8
        assert not stored[before[name] == 0].any()
    assert after["c1.weight_scale"].shape == (48,)


def test_reduced_range_uses_seven_bits(source: Path, tmp_path: Path) -> None:
    quantize_int8(source, tmp_path / "q.onnx", random_feeds(source, 2), packed=False, reduce_range=True)
    stored = [numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer]
    assert max(int(np.abs(array.astype(int)).max()) for array in stored if array.dtype == np.int8) <= 64


def test_packed_source(source: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "packed.onnx")
    feeds = random_feeds(source, 2)
    quantize_int8(tmp_path / "packed.onnx", tmp_path / "a.onnx", feeds)
    quantize_int8(source, tmp_path / "b.onnx", feeds)
    assert run(tmp_path / "a.onnx")[0].tobytes() == run(tmp_path / "b.onnx")[0].tobytes()


def test_what_cannot_be_quantised_says_why(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="calibration inputs"):
        quantize_int8(source, tmp_path / "q.onnx", [])
    with pytest.raises(ValueError, match="calibration method"):
        quantize_int8(source, tmp_path / "q.onnx", random_feeds(source, 1), method="best")  # type: ignore[arg-type]
    old = save(convnet(0.1, opset=12), tmp_path / "old.onnx")
    with pytest.raises(BadOnnxFile, match="opset 12"):
        quantize_int8(old, tmp_path / "q.onnx", random_feeds(source, 1))
    assert not (tmp_path / "q.onnx").exists()


def test_float_file_is_not_called_fused(source: Path) -> None:
    found = fusion(source)
    assert not found.complete
    assert not found.int8
    assert sum(found.float.values()) == 4
