"""`compress unpack`: the plain file, what is said about it, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress_cli.app import run as compress
from exporters.packing import pack
from tests.exporters.onnx_nets import convnet, initializers, run, save


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack(save(convnet(0.1), tmp_path / "dense.onnx"), tmp_path / "packed.onnx")
    return tmp_path / "packed.onnx"


def test_bit_for_bit(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = packed.with_name("plain.onnx")
    assert compress(["unpack", str(packed), "-o", str(target)]) == 0
    assert "4 tensors unpacked" in capsys.readouterr().out
    dense = initializers(packed.with_name("dense.onnx"))
    assert {name: array.tobytes() for name, array in initializers(target).items()} == {
        name: array.tobytes() for name, array in dense.items()
    }
    assert run(target)[0].tobytes() == run(packed.with_name("dense.onnx"))[0].tobytes()


def test_default_name_and_json(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress(["unpack", str(packed), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    assert document["file"] == str(packed.with_name("packed.plain.onnx"))
    assert Path(document["file"]).stat().st_size == document["bytes_after"] > document["bytes_before"]
    assert sorted(document["unpacked"]) == ["c1.weight", "c2.weight", "fc.weight", "out.weight"]


def test_plain_file_is_copied_with_a_warning(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense, target = packed.with_name("dense.onnx"), packed.with_name("copy.onnx")
    assert compress(["unpack", str(dense), "-o", str(target)]) == 0
    assert "no packed weights" in capsys.readouterr().err
    assert target.read_bytes() == dense.read_bytes()


@pytest.mark.parametrize(
    ("content", "words"), [(None, "does not exist"), (b"", "empty"), (b"\x89PNG 1234", "PNG"), (b"\x08\x07garbage", "")]
)
def test_unreadable(content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.onnx"
    if content is not None:
        path.write_bytes(content)
    assert compress(["unpack", str(path), "-o", str(tmp_path / "out.onnx")]) == 3
    text = capsys.readouterr().err
    assert "in.onnx" in text
    assert words.lower() in text.lower()
    assert not (tmp_path / "out.onnx").exists()
    assert len(list(tmp_path.iterdir())) == (content is not None)


def test_the_source_and_existing_files_are_safe(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = packed.read_bytes()
    assert compress(["unpack", str(packed), "-o", str(packed), "--overwrite"]) == 2
    assert "the file that is read" in capsys.readouterr().err
    assert packed.read_bytes() == before
    dense = packed.with_name("dense.onnx")
    assert compress(["unpack", str(packed), "-o", str(dense)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert compress(["unpack", str(packed), "-o", str(dense), "--overwrite"]) == 0


def test_missing_folder(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress(["unpack", str(packed), "-o", str(packed.parent / "no" / "out.onnx")]) == 3
    assert "does not exist" in capsys.readouterr().err
