"""mixup and CutMix: a batch blended with itself shifted by one sample, the loss blended alike.

Zhang et al., "mixup", ICLR 2018, arXiv 1710.09412; Yun et al., "CutMix", ICCV 2019, arXiv 1905.04899. Both draw
lambda ~ Beta(alpha, alpha); CutMix pastes a box of area 1 - lambda and corrects lambda for the image's border. Blending
losses equals blending one-hot targets for cross entropy, and works for any loss of one number per sample. The partner
is the sample before, as in torchvision's transforms v2: batches are shuffled, and no order has to go to the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compress_cli.data import Batch
from compress_cli.training.recipe import Recipe


def mixed(batch: Batch, recipe: Recipe) -> tuple[Batch, Batch | None, float]:
    """The batch to run, the one whose targets count for 1 - lambda (None without mixing), and lambda.

    Random numbers come from torch's global generator, which the trainer seeds in every step.
    """
    image = batch.inputs[0]
    if not (recipe.mixup or recipe.cutmix) or image.dim() != 4:
        return batch, None, 1.0
    cut = bool(recipe.cutmix) and (not recipe.mixup or bool(torch.rand(()) < 0.5))
    alpha = recipe.cutmix if cut else recipe.mixup
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    partner = image.roll(1, 0)
    if cut:
        image, share = paste_box(image, partner, share)
    else:
        image = share * image + (1 - share) * partner
    run = dataclasses.replace(batch, inputs=(image, *batch.inputs[1:]))
    return run, dataclasses.replace(run, target=rolled(batch.target)), share


def paste_box(image: Tensor, other: Tensor, share: float) -> tuple[Tensor, float]:
    """`image` with a box of `other` around a random centre, of area 1 - share before clipping; and the true share."""
    height, width = image.shape[-2:]
    side = (1 - share) ** 0.5
    row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(0, row - half_height), min(height, row + half_height)
    left, right = max(0, column - half_width), min(width, column + half_width)
    image = image.clone()
    image[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return image, 1 - (bottom - top) * (right - left) / (height * width)


def rolled(target: Any) -> Any:
    """A collated target with every sample's place taken by the one before."""
    if isinstance(target, Tensor):
        return target.roll(1, 0)
    if isinstance(target, Mapping):
        return {key: rolled(value) for key, value in target.items()}
    if isinstance(target, (list, tuple)):
        return [rolled(value) for value in target]
    return target
