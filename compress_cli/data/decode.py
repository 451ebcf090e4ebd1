"""Image files to uint8 tensors, with several threads; and a cache of the decoded pixels outside the user's folders."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress_cli.data.preprocess import Preprocess
from compress_cli.errors import InputError

THREADS = min(8, (os.cpu_count() or 1) + 1)


def open_image(path: Path, channels: int) -> Any:
    """The PIL image in grey or RGB.

    Raises:
        InputError: unreadable, naming the file.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except FileNotFoundError as error:
        raise InputError(f"the image {path} is gone", "restore the file, or start again without it") from error
    except Exception as error:  # Pillow's decoders raise many kinds: OSError, SyntaxError, struct.error, its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as an image: {reason}", "remove or replace the file") from error


def fit(image: Any, preprocess: Preprocess) -> Any:
    """Resize the shorter side and crop the centre, unless the image has the wanted size already."""
    from torchvision.transforms.v2 import functional as F

    if preprocess.size is None or (image.height, image.width) == preprocess.size:
        return image
    side = preprocess.resize or min(preprocess.size)
    return F.center_crop(F.resize(image, [side], antialias=True), list(preprocess.size))


def pixels(image: Any) -> Tensor:
    """(channels, height, width) uint8 of a PIL image."""
    array = np.asarray(image)
    return torch.from_numpy(array.copy()).unsqueeze(0) if array.ndim == 2 else torch.from_numpy(array.copy()).permute(
        2, 0, 1
    )  # fmt: skip


def decode(files: Sequence[Path], preprocess: Preprocess) -> Tensor:
    """(images, channels, height, width) uint8 of some files, in order.

    Raises:
        InputError: an unreadable image, or images of different sizes where no input size is known.
    """

    def one(path: Path) -> Tensor:
        return pixels(fit(open_image(path, preprocess.channels), preprocess))

    if len(files) < 32:
        decoded = [one(path) for path in files]
    else:
        with ThreadPoolExecutor(THREADS) as pool:
            decoded = list(pool.map(one, files))
    for path, image in zip(files, decoded, strict=True):
        if image.shape != decoded[0].shape:
            raise InputError(
                f"{path} is {image.shape[2]}x{image.shape[1]}, {files[0]} is {decoded[0].shape[2]}x"
                f"{decoded[0].shape[1]}: images of different sizes need a common one",
                "pass --input-shape CxHxW",
            )
    return torch.stack(decoded)


class PixelCache:
    """Decoded pixels of one list of files on disk, in the user's cache folder; every failure means "no cache".

    The name is a checksum of paths, sizes, times of change and the preprocessing: edited images are decoded anew.
    """

    def __init__(self, files: Sequence[Path], preprocess: Preprocess) -> None:
        self._files = files
        self._preprocess = preprocess
        self._path: Path | None = None

    def load(self) -> Tensor | None:
        """The pixels of all files, or None."""
        with contextlib.suppress(OSError, ValueError):
            path = self._where()
            if path.exists():
                array = np.load(path, allow_pickle=False)
                if array.dtype == np.uint8 and array.ndim == 4 and len(array) == len(self._files):
                    return torch.from_numpy(array)
        return None

    def store(self, images: Tensor) -> None:
        """Keep the pixels of all files for the next run."""
        with contextlib.suppress(OSError):
            path = self._where()
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.stem}-{os.getpid()}.npy")
            try:
                np.save(temporary, images.numpy(), allow_pickle=False)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def _where(self) -> Path:
        if self._path is None:
            digest = hashlib.sha256(repr((self._preprocess.size, self._preprocess.resize)).encode())
            digest.update(str(self._preprocess.channels).encode())
            for file in self._files:
                status = file.stat()
                digest.update(f"{os.path.abspath(file)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
            home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
            self._path = Path(home) / "compress" / f"images-{digest.hexdigest()[:24]}.npy"
        return self._path
