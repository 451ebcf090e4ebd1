"""Kinds of files are told apart by their bytes; what is no checkpoint is named, with what to do about it."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress_cli.checkpoint.sniff import Kind, sniff
from compress_cli.errors import InputError
from tests.compress_cli.checkpoint.checkpoint_files import LocalNet, refusal, save_torch, weights


def test_torch_save_files_by_what_they_hold(tmp_path: Path) -> None:
    state = weights()
    files = {
        Kind.STATE_DICT: state,
        Kind.TRAINING: {"epoch": 3, "state_dict": state},
        Kind.PICKLED_MODULE: nn.Sequential(nn.Linear(2, 2)),
        Kind.EMPTY: {"epoch": 3},
    }
    found = {kind: sniff(save_torch(tmp_path / f"{kind}.pt", payload)) for kind, payload in files.items()}
    assert found == {kind: kind for kind in files}


def test_legacy_safetensors_torchscript_and_exported_programs(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "s.safetensors")
    torch.jit.save(torch.jit.script(LocalNet()), tmp_path / "script.pt")
    torch.export.save(torch.export.export(LocalNet().eval(), (torch.zeros(1, 2),)), tmp_path / "program.pt2")
    assert sniff(save_torch(tmp_path / "old.pth", weights(), legacy=True)) is Kind.LEGACY
    assert sniff(tmp_path / "s.safetensors") is Kind.SAFETENSORS
    assert sniff(tmp_path / "script.pt") is Kind.TORCHSCRIPT
    assert sniff(tmp_path / "program.pt2") is Kind.EXPORTED_PROGRAM


def test_onnx_is_known_by_its_first_fields(tmp_path: Path) -> None:
    import onnx

    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1])],
        [onnx.helper.make_tensor_value_info("y", 1, [1])],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "weights.bin")  # the suffix does not tell
    assert sniff(tmp_path / "weights.bin") is Kind.ONNX


def test_suffixes_do_not_matter(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "weights.pt")
    assert sniff(tmp_path / "weights.pt") is Kind.SAFETENSORS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty (0 bytes)"),
        (b"hello there", "is a text file, not a checkpoint (it begins 'hello there')"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"\x1f\x8b" + bytes(30), "gunzip -k"),
        (b"\xfd7zXZ\x00" + bytes(30), "xz -dk"),
        (b"\x89PNG" + bytes(30), "a PNG image"),
        (b"\x93NUMPY" + bytes(30), "a NumPy array"),
        (pickle.dumps({"a": 1}), "plain Python pickle"),
        (bytes(257) + b"ustar" + bytes(30), "tar xf"),
    ],
    ids=["empty", "text", "html", "lfs", "gzip", "xz", "png", "npy", "pickle", "tar"],
)
def test_what_is_no_checkpoint_is_named_with_the_way_out(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        sniff(file)
    assert str(file) in caught.value.message
    assert says in refusal(caught.value)
    assert caught.value.fix


def test_random_bytes_are_unknown(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(b"\xff\xfe" + bytes(range(1, 200)))
    assert sniff(file) is Kind.UNKNOWN


def test_zip_archives_that_are_no_checkpoints(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "x")
    arrays = io.BytesIO()
    np.savez(arrays, w=np.zeros(3))
    (tmp_path / "b.npz").write_bytes(arrays.getvalue())
    with pytest.raises(InputError, match=r"no data\.pkl; it holds notes\.txt"):
        sniff(tmp_path / "a.zip")
    with pytest.raises(InputError, match=r"NumPy \.npz archive \(1 arrays\)"):
        sniff(tmp_path / "b.npz")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.99])
def test_a_truncated_zip_is_called_cut_short(tmp_path: Path, share: float) -> None:
    whole = save_torch(tmp_path / "whole.pt", weights()).read_bytes()
    file = tmp_path / "part.pt"
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match="cut short or damaged"):
        sniff(file)


@pytest.mark.parametrize("cut", [1, 5, 200])
def test_a_truncated_safetensors_file_is_called_cut_short(tmp_path: Path, cut: int) -> None:
    save_file(weights(), tmp_path / "whole.safetensors")
    file = tmp_path / "part.safetensors"
    file.write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-cut])
    with pytest.raises(InputError, match="safetensors file that is cut short"):
        sniff(file)


def test_a_missing_file_suggests_close_names(tmp_path: Path) -> None:
    save_torch(tmp_path / "resnet18.pt", weights())
    with pytest.raises(InputError) as caught:
        sniff(tmp_path / "resnet8.pt")
    assert "does not exist" in caught.value.message
    assert caught.value.fix == f"did you mean {tmp_path / 'resnet18.pt'}?"


def test_a_folder_names_the_checkpoint_in_it(tmp_path: Path) -> None:
    save_torch(tmp_path / "model.pt", weights())
    with pytest.raises(InputError) as caught:
        sniff(tmp_path)
    assert caught.value.fix == f"pass the file: {tmp_path / 'model.pt'}"


def test_pipes_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="is a pipe or a device, not a file"):
            sniff(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    file = save_torch(tmp_path / "model.pt", weights())
    file.chmod(0)
    with pytest.raises(InputError, match=r"cannot read .*Permission denied"):
        sniff(file)
