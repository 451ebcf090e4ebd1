"""ONNX files that a command reads and writes: checked names, and results that are whole or absent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress_cli.atomic import atomic_path
from compress_cli.errors import InputError, UsageError


def existing_onnx(name: str | Path) -> Path:
    """The ONNX file that a user named.

    Raises:
        InputError: it is missing, a folder, or another kind of file.
    """
    from compress_cli.checkpoint.sniff import Kind, sniff

    path = Path(name)
    kind = sniff(path)
    if kind is not Kind.ONNX:
        raise InputError(f"{name} is not an ONNX file", "make one with: compress export CHECKPOINT -o model.onnx")
    return path


def free_target(name: str, source: Path, *, overwrite: bool) -> Path:
    """The file to write.

    Raises:
        UsageError: it is the source, or it is there and `overwrite` was not asked.
    """
    path = Path(name)
    if path.exists() and source.exists() and path.samefile(source):
        raise UsageError(f"{name} is the file that is read", "name another file with -o")
    if not overwrite:
        _refuse_taken(path)
    return path


def _refuse_taken(path: Path) -> None:
    if path.exists():
        raise UsageError(f"{path} is already there", "choose another name with -o, or pass --overwrite")


@contextmanager
def published(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path of the same name in a temporary folder beside `target`; on success all files in it move to their place.

    Raises:
        InputError: the place cannot be written to, or the disk is full.
        UsageError: a file that comes with it (its data, another format) is there and `overwrite` was not asked.
    """
    with (
        atomic_path(target) as last,  # checks the place and turns its errors into ours
        tempfile.TemporaryDirectory(prefix=".onnx-", dir=target.parent) as folder,
    ):
        work = Path(folder) / target.name
        yield work
        extras = [extra for extra in Path(folder).iterdir() if extra != work]  # data of a model over 2 GB, .ort
        for extra in () if overwrite else extras:
            _refuse_taken(target.parent / extra.name)
        for extra in extras:
            os.replace(extra, target.parent / extra.name)
        os.replace(work, last)


@contextmanager
def onnx_errors() -> Iterator[None]:
    """Turn an ONNX file that cannot be read, packed, quantised or converted into an error of the user's input."""
    from exporters.errors import BadOnnxFile

    try:
        yield
    except BadOnnxFile as error:
        raise InputError(str(error), "check the file, or export the network again: compress export") from error
