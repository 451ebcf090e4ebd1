"""Files for phones: made by each runtime's converter, equal to ONNX Runtime; absent packages and refusals are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from exporters import phone_files
from exporters.errors import BadOnnxFile
from exporters.feeds import random_feeds
from exporters.packing import pack
from exporters.phone_files import FORMATS, convert_for_phone, missing_packages
from profilers.mobile.registry import RUNTIMES
from tests.exporters.onnx_nets import convnet, make, save


def need(name: str) -> None:
    absent = missing_packages(name)
    if absent:
        pytest.skip(absent)


@pytest.mark.parametrize("name", FORMATS)
def test_equal_to_onnx_runtime(name: str, tmp_path: Path) -> None:
    need(name)
    source = save(convnet(0.3), tmp_path / "net.onnx")
    pack(source, tmp_path / "packed.onnx")
    feeds = random_feeds(source, 3, batch=2)
    found = convert_for_phone(name, tmp_path / "packed.onnx", tmp_path / "net.x", feeds, half_precision=False)
    assert [path.name for path in found.files] == [f"net{suffix}" for suffix in RUNTIMES[name].suffixes]
    assert found.bytes == sum(path.stat().st_size for path in found.files)
    assert found.comparison.inputs == 3
    assert found.comparison.max_rel < 1e-5
    assert found.equal
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["net.onnx", "packed.onnx", *(path.name for path in found.files)]
    )


@pytest.mark.parametrize("name", ["ncnn", "mnn"])
def test_half_precision_halves_the_file(name: str, tmp_path: Path) -> None:
    need(name)
    source = save(convnet(1.0), tmp_path / "net.onnx")
    full, half = (
        convert_for_phone(name, source, tmp_path / "n.x", random_feeds(source, 1), half_precision=half)
        for half in (False, True)
    )
    assert half.bytes < 0.65 * full.bytes
    assert 1e-6 < half.comparison.max_rel < 1e-2


@pytest.mark.parametrize("name", FORMATS)
def test_missing_packages_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    source = save(convnet(1.0), tmp_path / "net.onnx")
    with pytest.raises(BadOnnxFile, match="not installed here"):
        convert_for_phone(name, source, tmp_path / "n.x", [{"x": np.zeros((1, 3, 8, 8), np.float32)}])
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


class Refusing:
    """Converts by a program that fails, or runs by one that dies."""

    title, modules, install, suffixes, half = "Refusing", ("numpy",), "", (".r",), False
    name = "refusing"

    def convert(self, model: Path, signature: object, folder: Path, *, half: bool) -> tuple[Path, ...]:
        phone_files.convert_in_process("sys.exit('Error: no such operator: Sign')", [], what="its converter")
        return ()


def test_a_refusal_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "refusing", Refusing())
    source = save(
        make([helper.make_node("Sign", ["x"], ["y"])], {}, [("x", [1, 4])], [("y", [1, 4])]), tmp_path / "s.onnx"
    )
    with pytest.raises(BadOnnxFile, match="its converter refuses the model: Error: no such operator: Sign"):
        convert_for_phone("refusing", source, tmp_path / "n.x", [{"x": np.zeros((1, 4), np.float32)}])
    assert [path.name for path in tmp_path.iterdir()] == ["s.onnx"]
