"""This process among others: rank, world size, and sums over all of them; alone when there is no process group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def active() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if active() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if active() else 1


def add_up_(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes in place; exact for whole numbers in float64."""
    if active():
        dist.all_reduce(tensor)
    return tensor


def any_true(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if not active():
        return flag
    return bool(add_up_(torch.tensor(float(flag), device=device)) > 0)


def from_first(value: Any) -> Any:
    """The first process's value in all of them (a plan, for example); the value itself when alone."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
