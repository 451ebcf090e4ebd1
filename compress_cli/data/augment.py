"""Training augmentation of small images as whole batches: random shift within a black border, and mirroring.

He et al. 2015 (arXiv 1512.03385, section 4.2) for 32x32: four pixels of border, a random crop, a random flip. The
random numbers of an epoch are drawn for all images at once, so that what happens to an image depends on the seed, the
epoch and the image only: not on the batch, the number of processes, or where a run was interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to training images: `border` pixels of shift at most; `flip` mirrors left and right."""

    border: int
    flip: bool
    randaugment: bool = False

    @classmethod
    def standard(cls, channels: int, side: int, *, randaugment: bool = False) -> Augmentation:
        """An eighth of the side as border (4 of 32); grey images (digits, letters, scans) are not mirrored."""
        return cls(side // 8, channels == 3, randaugment)

    def describe(self) -> str:
        """In words, for the report."""
        more = (", random mirroring" if self.flip else "") + (", RandAugment" if self.randaugment else "")
        return f"random shift of up to {self.border} pixels{more}"


@dataclass(frozen=True, slots=True)
class EpochDraws:
    """Random numbers of one epoch for every image: `shift` (images, 2) in 0..2*border, `mirror` (images,)."""

    shift: Tensor
    mirror: Tensor

    def to(self, device: torch.device) -> EpochDraws:
        """The same numbers on a device."""
        return EpochDraws(self.shift.to(device), self.mirror.to(device))


def draw(augmentation: Augmentation, images: int, seed: int, epoch: int) -> EpochDraws:
    """The draws of an epoch; equal arguments give equal draws."""
    generator = torch.Generator().manual_seed(mix(seed, epoch, 1))
    shift = torch.randint(0, 2 * augmentation.border + 1, (images, 2), generator=generator)
    mirror = torch.rand(images, generator=generator) < 0.5
    return EpochDraws(shift, mirror & augmentation.flip)


def augment(images: Tensor, augmentation: Augmentation, draws: EpochDraws, positions: Tensor) -> Tensor:
    """Shift and mirror (batch, channels, height, width) images, the ones at `positions` of the data set.

    Images, draws and positions are on one device, and nothing leaves it.
    """
    batch, channels, height, width = images.shape
    border = augmentation.border
    shift, mirror = draws.shift[positions], draws.mirror[positions]
    rows = shift[:, 0, None] + torch.arange(height, device=images.device)  # (batch, height)
    columns = torch.arange(width, device=images.device).expand(batch, width)
    columns = shift[:, 1, None] + torch.where(mirror[:, None], width - 1 - columns, columns)
    padded = F.pad(images, (border,) * 4)
    rows = rows.view(batch, 1, height, 1).expand(-1, channels, -1, padded.shape[3])
    columns = columns.view(batch, 1, 1, width).expand(-1, channels, height, -1)
    return padded.gather(2, rows).gather(3, columns)


def rand_augment(images: Tensor, positions: Tensor, seed: int, epoch: int) -> Tensor:
    """torchvision's RandAugment (Cubuk et al. 2019, arXiv 1909.13719) on each uint8 image by its own random numbers."""
    from torchvision.transforms import v2

    change = v2.RandAugment()
    changed = []
    for image, position in zip(images, positions.tolist(), strict=True):
        torch.manual_seed(mix(seed, epoch, 4, position))
        changed.append(change(image))
    return torch.stack(changed)


def mix(*numbers: int) -> int:
    """One seed from several numbers (splitmix64's finaliser), so that neighbours give unrelated streams.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF
