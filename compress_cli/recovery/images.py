"""The calibration images: batches of one size, some to fit on and some to check on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress_cli.recovery.errors import NoImages

Batch = tuple[Tensor, ...]
PARTS = 5
"""At least so many batches, where there are enough images, so that a fifth can be held out."""

MOST_VALUES = 16 * 3 * 224 * 224
"""Input values a batch: what a network computes from them must fit into memory, too."""


@dataclass(frozen=True, slots=True)
class Images:
    """Batches of equal size.

    Attributes:
        batches: fitted ones first.
        fitted: how many of the batches are fitted; the others are held out.
        size: images a batch.
    """

    batches: tuple[Batch, ...]
    fitted: int
    size: int

    @property
    def count(self) -> int:
        """Images in all."""
        return len(self.batches) * self.size

    @property
    def held_out(self) -> int:
        """Images that are not fitted."""
        return (len(self.batches) - self.fitted) * self.size

    def spread(self, number: int) -> tuple[int, ...]:
        """So many batches, fitted and held out ones in proportion, at least one of each; ascending."""
        total = len(self.batches)
        number = min(max(number, 2), total)
        held = min(max(round(number * (total - self.fitted) / total), 1), total - self.fitted)
        fitted = min(number - held, self.fitted)
        return (*range(fitted), *range(self.fitted, self.fitted + held))


def arrange(batches: Sequence[Tensor | Sequence[Tensor]], largest: int, holdout: float, seed: int) -> Images:
    """Shuffle images into batches of one size and set some aside.

    Args:
        batches: tensors (images, ...), or tuples of the network's positional arguments.
        largest: most images a batch; fewer of large images (`MOST_VALUES`).
        holdout: share of the images to check on, in (0, 1).
        seed: of the shuffle.

    Raises:
        NoImages: fewer than 2.
        ValueError: a holdout that is not a share.
    """
    if not 0 < holdout < 1:
        raise ValueError(f"holdout must lie between 0 and 1, not {holdout}")
    columns = list(zip(*(_arguments(batch) for batch in batches), strict=True))
    parts = [torch.cat(list(column)) for column in columns]
    count = parts[0].shape[0] if parts else 0
    if count < 2:
        raise NoImages(count, 2)
    values = sum(part[0].numel() for part in parts)
    largest = max(min(largest, MOST_VALUES // max(values, 1)), 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(parts[0].device)
    number = max(-(-count // largest), min(PARTS, count))
    size = count // number
    pieces = [order[index * size : (index + 1) * size] for index in range(number)]
    held = min(max(round(holdout * number), 1), number - 1)
    return Images(tuple(tuple(part[piece] for part in parts) for piece in pieces), number - held, size)


def _arguments(batch: Tensor | Sequence[Tensor]) -> Batch:
    return (batch,) if isinstance(batch, Tensor) else tuple(batch)
