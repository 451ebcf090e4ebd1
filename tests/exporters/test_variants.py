"""Every form of `--weights`: written, compared with the dense file, inside its stated tolerance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporters.feeds import random_feeds
from exporters.packing import TIERS, pack
from exporters.variants import WEIGHTS, tolerance, write_variant
from tests.exporters.onnx_nets import convnet, make, save, sparse


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(convnet(0.3), tmp_path_factory.mktemp("variants") / "dense.onnx")


@pytest.mark.parametrize("weights", ["dense", "packed", "packed-fp16", "packed-q8", "packed-cb5", "packed-cb", "int8"])
def test_forms(weights: str, dense: Path, tmp_path: Path) -> None:
    found = write_variant(dense, tmp_path / "v.onnx", weights)
    assert found.ok
    assert found.files == (tmp_path / "v.onnx",)
    assert found.bytes == (tmp_path / "v.onnx").stat().st_size
    assert (found.bytes < found.dense_bytes) == (weights != "dense")
    assert found.comparison.identical == (weights in ("dense", "packed"))
    assert found.comparison.rms_rel <= found.tolerance
    assert json.loads(json.dumps(found.to_dict()))["weights"] == weights
    assert (found.int8 is not None) == (weights == "int8")
    assert (found.allocation is not None) == (weights == "packed-cb")


def test_bits_are_bought_within_the_budget_that_was_asked(dense: Path, tmp_path: Path) -> None:
    found = write_variant(dense, tmp_path / "v.onnx", "packed-cb", max_error=0.01)
    assert found.allocation is not None
    assert found.packing is not None
    assert found.allocation.measured.rms_rel <= 0.01
    assert {t.name: t.values for t in found.packing.tensors} == found.allocation.codes
    coarse = write_variant(dense, tmp_path / "c.onnx", "packed-cb", max_error=0.1)
    assert coarse.bytes < found.bytes


def test_too_large_a_difference_is_not_ok(dense: Path, tmp_path: Path) -> None:
    """Weights far below the smallest number of fp16 all become zero."""
    model = onnx.load(dense)
    for tensor in model.graph.initializer:
        if tensor.name == "out.weight":
            array = numpy_helper.to_array(tensor) * np.float32(1e-9)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    found = write_variant(save(model, tmp_path / "tiny.onnx"), tmp_path / "v.onnx", "packed-fp16")
    assert found.comparison.rms_rel == 1.0
    assert not found.ok


def test_tolerances_grow_as_bits_shrink() -> None:
    assert set(WEIGHTS) == {"dense", *TIERS, "packed-cb", "int8"}
    for family in ("q", "cb"):
        limits = [tolerance(f"packed-{family}{bits}") for bits in range(2, 9)]
        assert limits == sorted(limits, reverse=True)
        assert 0 < limits[-1] < limits[0] <= 1
    assert tolerance("packed") == tolerance("dense") == 0
    assert tolerance("packed-fp16") == 2e-3


def test_held_out_inputs_are_what_is_compared(dense: Path, tmp_path: Path) -> None:
    feeds, held_out = random_feeds(dense, 2, batch=2), random_feeds(dense, 5, batch=1, seed=7)
    found = write_variant(dense, tmp_path / "v.onnx", "int8", feeds=feeds, held_out=held_out)
    assert found.comparison.inputs == 5
    assert not found.synthetic
    assert not any("random inputs" in note for note in found.notes)
    assert any("random inputs" in note for note in write_variant(dense, tmp_path / "w.onnx", "int8").notes)


def test_unknown_form(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown weights"):
        write_variant(dense, tmp_path / "v.onnx", "plain")


def test_rounding_of_another_fusion_is_no_other_weight(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with torchvision's LR-ASPP: the weights decide, when outputs differ by an addition's last bit only."""
    import dataclasses

    from exporters import variants

    genuine = variants.compare

    def rounded(*arguments: object) -> object:
        found = genuine(*arguments)  # type: ignore[arg-type]
        return dataclasses.replace(found, identical=False, max_rel=1.6e-7, rms_rel=3.7e-8)

    monkeypatch.setattr(variants, "compare", rounded)
    found = write_variant(dense, tmp_path / "v.onnx", "packed")
    assert found.ok
    assert any("same bit for bit" in note for note in found.notes)
    model = onnx.load(dense)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    changed = numpy_helper.to_array(largest).copy()
    changed.flat[np.flatnonzero(changed)[0]] *= 1 + 1e-6
    largest.CopyFrom(numpy_helper.from_array(changed, largest.name))
    other = tmp_path / "other.onnx"
    onnx.save(model, other)
    monkeypatch.setattr(variants, "pack", lambda _, target, **options: pack(other, target, **options))
    assert not write_variant(dense, tmp_path / "w.onnx", "packed").ok


def test_codebooks_follow_the_calibration_inputs(tmp_path: Path) -> None:
    """Half the inputs are thirty times louder: the centres move to the weights that multiply them."""
    weights = sparse((64, 48), 1.0) * np.where(np.arange(64) < 32, 0.2, 1).astype(np.float32)[:, None]
    net = make([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weights}, [("x", ["N", 64])], [("y", ["N", 48])])
    source, loud = save(net, tmp_path / "net.onnx"), np.where(np.arange(64) < 32, 30, 1).astype(np.float32)
    feeds = [{"x": feed["x"] * loud} for feed in random_feeds(source, 4, batch=16)]
    aware = write_variant(source, tmp_path / "a.onnx", "packed-cb3", feeds=feeds)
    plain = write_variant(source, tmp_path / "b.onnx", "packed-cb3", held_out=feeds)
    assert not aware.synthetic
    assert aware.comparison.rms_rel < 0.8 * plain.comparison.rms_rel
