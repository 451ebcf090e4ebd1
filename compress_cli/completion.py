"""What the shell offers for an unfinished word: methods, forms of weights, targets, and the layers of the checkpoint.

Nothing here imports torch. Layer names are read from the header of a safetensors file or, without running anything,
from the strings in a zipped pickle; a file that gives none offers nothing.
"""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

Completer = Callable[[Any, str], list[str]]
"""(click context, the unfinished word) -> the words that continue it."""

TENSOR_ENDINGS = (".weight", ".bias", "_weight", "_bias")
HEADER_LIMIT = 100_000_000
"""Bytes of a safetensors header that is still read."""


def one_of(words: Iterable[str]) -> Completer:
    """Offer a fixed list."""
    listed = list(words)

    def complete(ctx: Any, incomplete: str) -> list[str]:
        return [word for word in listed if word.startswith(incomplete)]

    return complete


def comma_separated(words: Iterable[str]) -> Completer:
    """Offer a fixed list for the last of several words joined by commas."""
    listed = list(words)

    def complete(ctx: Any, incomplete: str) -> list[str]:
        head, comma, last = incomplete.rpartition(",")
        taken = head.split(",")
        return [head + comma + word for word in listed if word.startswith(last) and word not in taken]

    return complete


def targets(ctx: Any, incomplete: str) -> list[str]:
    """Offer what `--target` takes; device names after `mobile:`."""
    from compress_cli.targets import RUNTIMES  # a literal table

    head, comma, last = incomplete.rpartition(",")
    offered = ["cloud-cpu", "cloud-gpu", "ssh:", "adb:", "qemu:", *RUNTIMES]
    offered += [f"mobile:{name}" for name in device_names()] if last.startswith("mobile:") else ["mobile:"]
    return [head + comma + word for word in offered if word.startswith(last)]


def device_names() -> list[str]:
    """Names of the devices that latency can be predicted for."""
    from profilers.devices.catalog import devices

    return sorted({device.key for device in devices()})


def layers(ctx: Any, incomplete: str) -> list[str]:
    """Offer layers and tensors of the checkpoint on the command line."""
    words = [(getattr(ctx, "params", None) or {}).get("checkpoint"), *getattr(ctx, "args", ())]
    checkpoint = next((word for word in words if word and Path(word).is_file()), None)
    if checkpoint is None:
        return []
    found: dict[str, None] = {}
    for name in tensor_names(Path(checkpoint)):
        found.setdefault(name.rpartition(".")[0], None)
        found.setdefault(name, None)
    return [name for name in found if name and name.startswith(incomplete)]


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a checkpoint, as far as they can be read without torch; wrapper prefixes are removed."""
    try:
        read = _safetensors if path.suffix == ".safetensors" else _zipped if zipfile.is_zipfile(path) else _legacy
        names = list(dict.fromkeys(read(path)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return []
    return [name.removeprefix("module.") for name in names]


def _safetensors(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_LIMIT:
            return
        header = json.loads(file.read(length))
    yield from (name for name in header if name != "__metadata__")


def _zipped(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as archive:
        name = next((item for item in archive.namelist() if item.endswith("data.pkl")), None)
        if name is not None:
            yield from _tensor_like(io.BytesIO(archive.read(name)))


def _legacy(path: Path) -> Iterator[str]:
    """Files of torch before 1.6: three pickles about the format, then the one with the names."""
    with path.open("rb") as file:
        for _ in range(4):
            yield from _tensor_like(file)


def _tensor_like(file: IO[bytes]) -> Iterator[str]:
    """Strings of the next pickle that end like a tensor's name; nothing is unpickled."""
    for _, argument, _ in pickletools.genops(file):
        if isinstance(argument, str) and argument.endswith(TENSOR_ENDINGS) and " " not in argument:
            yield argument


__all__ = ["comma_separated", "device_names", "layers", "one_of", "targets", "tensor_names"]
