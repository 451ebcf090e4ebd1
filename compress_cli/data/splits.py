"""A part of the data (training, test, calibration) that gives batches for any choice of samples.

Small images are decoded once and live in memory as uint8; larger ones, and a user's own data set, come through worker
processes. What happens to a sample in an epoch depends on (seed, epoch, sample) alone, so training is reproducible
whatever the number of workers, and resumes anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from compress_cli.data.augment import Augmentation, augment, draw, rand_augment
from compress_cli.data.decode import PixelCache, decode
from compress_cli.data.folders import ImageList
from compress_cli.data.preprocess import Preprocess
from compress_cli.errors import InputError

_WORTH_CACHING = 1000  # images; fewer are decoded in about a second


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs for `module(*inputs)`, the target as the data set gives it (collated), and the samples' positions."""

    inputs: tuple[Tensor, ...]
    target: Any
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)


class Split(Protocol):
    """Samples that can be asked for by position."""

    labels: Sequence[int] | None
    """Class of each sample where it is known without reading it; for balanced choices."""

    def __len__(self) -> int:
        """Number of samples."""

    def batches(
        self, pieces: Sequence[Sequence[int]], *, device: torch.device, epoch: int | None = None, seed: int = 0
    ) -> Iterator[Batch]:
        """One batch per piece of positions; with `epoch`, augmented as that training epoch."""

    def describe(self) -> dict[str, Any]:
        """JSON-able description for the report."""


class MemoryImages:
    """Images small enough to be kept as uint8; decoded on first use, on the device when it is a GPU with room."""

    def __init__(self, images: ImageList, preprocess: Preprocess, augmentation: Augmentation | None = None) -> None:
        self.images = images
        self.labels: Sequence[int] | None = images.labels or None
        self._preprocess = preprocess
        self._augmentation = augmentation
        self._pixels: Tensor | None = None
        self._done = torch.zeros(len(images), dtype=torch.bool)
        self._targets = torch.tensor(images.labels, dtype=torch.int64)
        self._resident: dict[torch.device, Tensor] = {}
        self._labels_on: dict[torch.device, Tensor] = {}
        self._cache = PixelCache(images.files, preprocess) if len(images) > _WORTH_CACHING else None
        self._cache_tried = False

    def __len__(self) -> int:
        return len(self.images)

    def describe(self) -> dict[str, Any]:
        """Count, place, and what training does to the images."""
        words = None if self._augmentation is None else self._augmentation.describe()
        return {"images": len(self), "folder": str(self.images.root), "kept": "in memory", "augmentation": words}

    def batches(
        self, pieces: Sequence[Sequence[int]], *, device: torch.device, epoch: int | None = None, seed: int = 0
    ) -> Iterator[Batch]:
        """See `Split`."""
        everything = torch.tensor([position for piece in pieces for position in piece], dtype=torch.int64)
        self._ensure(everything.tolist())
        augmentation = self._augmentation if epoch is not None else None
        draws = None if augmentation is None else draw(augmentation, len(self), seed, epoch or 0).to(device)
        # all that the pieces need of the host goes to the device at once: each copy makes the host wait for it
        store, labels, there = self._on(device), self._labels(device), everything.to(device)
        begin = 0
        for piece in pieces:
            part = slice(begin, begin + len(piece))
            begin += len(piece)
            positions, chosen = everything[part], there[part]
            images = store[chosen] if store.device.type == device.type else _sent(store[positions], device)
            if augmentation is not None and draws is not None:
                if augmentation.randaugment:
                    images = rand_augment(images, positions, seed, epoch or 0)
                images = augment(images, augmentation, draws, chosen)
            target = labels[chosen] if len(labels) else None
            yield Batch((self._preprocess.normalise(images),), target, positions)

    def _on(self, device: torch.device) -> Tensor:
        """The pixels where they are gathered: on a GPU when they take at most a third of its free memory."""
        assert self._pixels is not None
        if device.type == "cpu":
            return self._pixels
        if device not in self._resident and bool(self._done.all()) and self._pixels.numel() < _free_bytes(device) / 3:
            self._resident[device] = self._pixels.to(device)
        return self._resident.get(device, self._pixels)

    def _labels(self, device: torch.device) -> Tensor:
        """The classes of all images on a device; empty without classes."""
        if device not in self._labels_on:
            self._labels_on[device] = self._targets.to(device)
        return self._labels_on[device]

    def _ensure(self, positions: Sequence[int]) -> None:
        """Decode what is asked for and not there yet; everything when more than half is."""
        if bool(self._done.all()):
            return
        everything = len(set(positions)) > len(self) // 2
        if self._cache is not None and not self._cache_tried:
            self._cache_tried = True
            cached = self._cache.load()
            if cached is not None:
                self._pixels, self._done = cached, torch.ones(len(self), dtype=torch.bool)
                return
        wanted = range(len(self)) if everything else sorted(set(positions))
        missing = [position for position in wanted if not self._done[position]]
        if not missing:
            return
        decoded = decode([self.images.files[position] for position in missing], self._preprocess)
        if self._pixels is None:
            self._pixels = torch.zeros((len(self), *decoded.shape[1:]), dtype=torch.uint8)
        if decoded.shape[1:] != self._pixels.shape[1:]:
            raise InputError("images of different sizes need a common one", "pass --input-shape CxHxW")
        self._pixels[torch.tensor(missing)] = decoded
        self._done[torch.tensor(missing)] = True
        if everything and self._cache is not None:
            self._cache.store(self._pixels)


def _free_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


def _sent(images: Tensor, device: torch.device) -> Tensor:
    """Images on their way to a GPU, which does not make the host wait."""
    return (images.pin_memory() if device.type == "cuda" else images).to(device, non_blocking=True)
