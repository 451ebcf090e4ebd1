"""Files are whole or absent: full disks, missing folders and permissions are one clear error and leave nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compress_cli.atomic import atomic_path
from compress_cli.checkpoint import save
from compress_cli.errors import CompressError, InputError
from tests.compress_cli.checkpoint.checkpoint_files import refusal, weights
from tests.compress_cli.places import files_of_at_most, names, without_privileges


def test_the_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    with atomic_path(target) as temporary:
        temporary.write_text("{}", encoding="utf-8")
        assert temporary.suffix == ".json"
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "{}"
    assert names(tmp_path) == ["report.json"]


@pytest.mark.parametrize("failure", [ValueError("mine"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "report.json"
    target.write_text("old", encoding="utf-8")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise failure

    with pytest.raises(type(failure)):
        write()
    assert target.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["report.json"]


def refused(target: Path) -> str:
    with pytest.raises(InputError) as caught:
        save(target, tensors=weights())
    assert str(target) in caught.value.message
    assert caught.value.fix
    return refusal(caught.value)


def test_missing_folders_files_as_folders_and_folders_as_files(tmp_path: Path) -> None:
    assert f"mkdir -p {tmp_path / 'no'}" in refused(tmp_path / "no" / "model.pt")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "is a file, not a folder" in refused(tmp_path / "file" / "model.pt")
    assert "it is a folder" in refused(tmp_path)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    assert "File name too long" in refused(tmp_path / f"{'x' * 250}.pt")


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
def test_an_unwritable_folder(tmp_path: Path, mode: int) -> None:
    save(tmp_path / "model.pt", tensors=weights())  # whatever is imported on first use
    folder = tmp_path / "locked"
    folder.mkdir(mode=mode)
    with without_privileges(tmp_path, tmp_path.parent, tmp_path.parent.parent):
        text = refused(folder / "model.pt")
    folder.chmod(0o755)
    assert "no permission to write in" in text
    assert "choose a folder that you own with -o" in text
    assert names(folder) == []


@pytest.mark.parametrize(("limit", "side"), [(100_000, 1000), (1_000, 20), (10, 2)])
def test_a_full_disk_while_torch_writes(tmp_path: Path, limit: int, side: int) -> None:
    """Large files fail in the middle, small ones when the buffer is written: torch words each its own way."""
    with files_of_at_most(limit), pytest.raises(InputError) as caught:
        save(tmp_path / "model.pt", tensors={"w.weight": torch.zeros(side, side)})
    assert f"cannot write {tmp_path / 'model.pt'}" in caught.value.message
    assert "-o" in caught.value.fix
    assert names(tmp_path) == []


def test_a_full_disk_while_safetensors_writes(tmp_path: Path) -> None:
    """The twin is twice as large as `model.pt`, because it cannot share the storage of two names."""
    table = torch.zeros(100, 1000)
    with files_of_at_most(600_000), pytest.raises(InputError) as caught:
        save(
            tmp_path / "model.pt",
            tensors={"a.weight": table, "b.weight": table},
            safetensors=tmp_path / "model.safetensors",
        )
    assert f"cannot write {tmp_path / 'model.safetensors'}" in caught.value.message
    assert names(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_space_left_names_the_place_and_what_is_free(tmp_path: Path, number: int) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "model.onnx") as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise OSError(number, os.strerror(number))

    with pytest.raises(InputError) as caught:
        write()
    assert "no space left" in caught.value.message
    assert "MB free in" in caught.value.message
    assert "choose another place with -o" in caught.value.fix
    assert caught.value.exit_code == 3
    assert names(tmp_path) == []


def test_errors_about_other_files_are_not_ours(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "model.onnx"):
            (tmp_path / "no-such-file").read_text(encoding="utf-8")

    with pytest.raises(FileNotFoundError) as caught:
        write()
    assert not isinstance(caught.value, CompressError)
    assert names(tmp_path) == []


def test_a_real_full_device(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")

    def write() -> None:
        with atomic_path(tmp_path / "model.bin") as temporary:
            temporary.symlink_to("/dev/full")
            with temporary.open("wb") as stream:
                stream.write(b"x" * 100_000)

    with pytest.raises(InputError, match="no space left"):
        write()
    assert names(tmp_path) == []


def test_safetensors_alone_fails_the_same_way(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "model.safetensors") as temporary:
            save_file({"w": torch.zeros(2)}, temporary)
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    with pytest.raises(InputError, match="cannot write"):
        write()
    assert names(tmp_path) == []
