"""Splits that read each sample when it is needed: larger image files, and a user's own data set."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from compress_cli.data.augment import mix
from compress_cli.data.decode import fit, open_image, pixels
from compress_cli.data.folders import ImageList
from compress_cli.data.preprocess import Preprocess
from compress_cli.data.splits import Batch
from compress_cli.errors import CompressError, InputError

WORKERS = max(1, min(8, os.cpu_count() or 1))
_SLOW = 2e-3  # seconds a sample from which worker processes pay


class _Failure:
    """What went wrong with one sample, carried from a worker process to the caller."""

    def __init__(self, error: BaseException, position: int) -> None:
        if isinstance(error, CompressError):
            self.message, self.fix = error.message, error.fix
        else:
            self.message = f"sample {position} of the data set raised {type(error).__name__}: {error}"
            self.fix = "correct the data set of the task file"


class _Seeded(Dataset[Any]):
    """A data set whose random transforms depend on (seed, epoch, sample) only; errors become values."""

    def __init__(self, data: Any, seed: int, epoch: int | None) -> None:
        self._data = data
        self._seed = seed
        self._epoch = epoch

    def __getitem__(self, position: int) -> Any:
        try:
            if self._epoch is not None:
                number = mix(self._seed, self._epoch, 2, position)
                torch.manual_seed(number)
                random.seed(number)
                np.random.seed(number % 2**32)
            return self._data[position]
        except Exception as error:  # whatever a user's data set raises is reported once, by the caller
            return _Failure(error, position)


def _collate(items: list[Any]) -> Any:
    failure = next((item for item in items if isinstance(item, _Failure)), None)
    if failure is not None:
        return failure
    try:
        return default_collate(items)
    except (RuntimeError, TypeError, ValueError) as error:
        return _Failure(InputError(f"samples cannot be joined to a batch: {error}", "let all have one shape"), 0)


class LoadedSplit:
    """Samples read through a torch `DataLoader`.

    Args:
        data: what is read without augmentation; items are (input, target) or, without targets, inputs.
        training: the same samples as training sees them; None for `data`.
        finish: from collated inputs to a network's inputs on the device (normalisation).
    """

    def __init__(
        self,
        data: Any,
        *,
        training: Any | None = None,
        labels: Sequence[int] | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
        input_names: Sequence[str] = (),
        description: Mapping[str, Any] | None = None,
        has_target: bool = True,
    ) -> None:
        self.labels = labels
        self._data = data
        self._training = training if training is not None else data
        self._finish = finish
        self._names = tuple(input_names)
        self._description = dict(description or {})
        self._has_target = has_target
        self._workers: int | None = None

    def __len__(self) -> int:
        return len(self._data)

    def describe(self) -> dict[str, Any]:
        """Count, and what the maker said."""
        return {"images": len(self), **self._description}

    def batches(
        self, pieces: Sequence[Sequence[int]], *, device: torch.device, epoch: int | None = None, seed: int = 0
    ) -> Iterator[Batch]:
        """See `Split`."""
        data = _Seeded(self._data if epoch is None else self._training, seed, epoch)
        lists = [list(map(int, piece)) for piece in pieces]
        workers = self._workers_for(sum(map(len, lists)))
        loader: DataLoader[Any] = DataLoader(
            data, batch_sampler=lists, num_workers=workers, collate_fn=_collate, pin_memory=device.type == "cuda"
        )
        for piece, collated in zip(lists, loader, strict=True):
            if isinstance(collated, _Failure):
                raise InputError(collated.message, collated.fix)
            yield self._batch(collated, torch.tensor(piece), device)

    def _batch(self, collated: Any, positions: Tensor, device: torch.device) -> Batch:
        value, target = collated, None
        if self._has_target:
            if not isinstance(collated, (list, tuple)) or len(collated) != 2:
                raise InputError(
                    f"the data set's items are not pairs (input, target) but {type(collated).__name__}",
                    "let __getitem__ return (input, target); several targets go into a dict",
                )
            value, target = collated
        inputs = tuple(_move(tensor, device) for tensor in self._inputs(value))
        if self._finish is not None:
            inputs = tuple(self._finish(tensor) for tensor in inputs)
        return Batch(inputs, _move(target, device), positions)

    def _inputs(self, value: Any) -> Sequence[Tensor]:
        if isinstance(value, Mapping):
            names = self._names if set(self._names) == set(value) else tuple(value)
            return [value[name] for name in names]
        return list(value) if isinstance(value, (list, tuple)) else [value]

    def _workers_for(self, samples: int) -> int:
        """Worker processes, when reading is slow enough and there is enough to read."""
        if self._workers is None:
            if isinstance(self._data, TensorDataset):
                self._workers = 0
            else:
                begin = time.perf_counter()
                count = min(4, len(self._data))
                probe = _Seeded(self._data, 0, None)
                for position in range(count):
                    probe[position]
                self._workers = WORKERS if time.perf_counter() - begin > _SLOW * count else 0
        return self._workers if samples >= 64 else 0


class FileImages(Dataset[Any]):
    """Image files as uint8 pixels of the input's size, or through the user's own transform."""

    def __init__(self, images: ImageList, preprocess: Preprocess, *, training: bool, randaugment: bool = False) -> None:
        self._images = images
        self._randaugment = randaugment
        self._preprocess = preprocess
        self._training = training

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> Any:
        path = self._images.files[position]
        image = open_image(path, self._preprocess.channels)
        own = self._preprocess.transform
        if own is not None:
            function = (self._preprocess.train_transform or own) if self._training else own
            value = function(image)
            if not isinstance(value, Tensor):
                raise InputError(
                    f"{self._preprocess.name} returned a {type(value).__name__}, not a tensor",
                    "let it end with ToTensor or to_image and to_dtype",
                )
        else:
            value = pixels(self._cropped(image))
        return (value, self._images.labels[position]) if self._images.labels else value

    def _cropped(self, image: Any) -> Any:
        size = self._preprocess.size
        if not self._training or size is None:
            return fit(image, self._preprocess)
        from torchvision.transforms import v2

        # the training crop of torchvision's ImageNet recipes (Szegedy et al. 2014, arXiv 1409.4842, section 6)
        crop = v2.RandomResizedCrop(list(size), antialias=True)(image)
        flipped = v2.RandomHorizontalFlip()(crop)
        return v2.RandAugment()(flipped) if self._randaugment else flipped


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _move(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_move(item, device) for item in value]
    return value
