"""Channels zeroed instead of removed: the same function wherever removing equals zeroing, and undone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pruners.channels.atoms import tensor_at
from pruners.channels.plan_type import ChannelsPlan
from pruners.channels.surgery import check_fits


def zero_(model: nn.Module, plan: ChannelsPlan) -> None:
    """Zero, in place, every slice that the plan removes, on both sides of each layer."""
    with torch.no_grad():
        for name, keep in plan.keep.items():
            tensor = tensor_at(model, name)
            for dim in keep:
                gone = torch.tensor(plan.removed(name, dim), dtype=torch.long, device=tensor.device)
                tensor.data.index_fill_(dim, gone, 0)


@contextmanager
def masked(model: nn.Module, plan: ChannelsPlan) -> Iterator[nn.Module]:
    """Zero what the plan removes while the context lasts; the tensors get their exact values back, whatever happens.

    Mean, softmax and normalisation over channels see the zeros (`plan.not_zeroing` lists such operators).

    Raises:
        ChannelsMismatch: the model is not the one the plan was made for.
    """
    check_fits(model, plan)
    saved: dict[str, Tensor] = {name: tensor_at(model, name).detach().clone() for name in plan.keep}
    try:
        zero_(model, plan)
        yield model
    finally:
        with torch.no_grad():
            for name, tensor in saved.items():
                tensor_at(model, name).data.copy_(tensor)
