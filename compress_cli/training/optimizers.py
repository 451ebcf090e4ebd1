"""The optimiser of a recipe, and how many images make a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compress_cli.errors import InputError
from compress_cli.training import distributed
from compress_cli.training.recipe import Recipe


def step_plan(recipe: Recipe, images: int) -> tuple[int, int]:
    """Images a step (as asked, at most all there are, divisible between processes and parts), and steps an epoch."""
    unit = recipe.accumulate * distributed.world()
    batch = min(recipe.batch_size, images) // unit * unit
    if batch < 2 * unit and images < 2 * unit:
        raise InputError(f"{images} training images are too few to train on", "add images, or pass --epochs 0")
    batch = max(batch, unit)
    return batch, images // batch


def make_optimizer(module: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """SGD or AdamW; biases and normalisation parameters (one dimension) are not decayed.

    Raises:
        InputError: no parameter trains.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise InputError("the network has no parameters that train (requires_grad)", "pass --epochs 0")
    fast: dict[str, Any] = {"fused": True} if device.type == "cuda" else {"foreach": True}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, **fast)
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, **fast)
    if "fused" in fast and recipe.momentum:
        # made by the first step, the buffers stay uninitialised when that step is left out (an overflow in float16);
        # a step from zero momentum is the usual first step
        for parameter in trained:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
