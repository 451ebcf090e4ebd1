"""How the arithmetic of training runs on a device: plain float32 on a CPU; on a GPU bfloat16 products, channels last.

The float32 weights and their gradients stay float32 everywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from compress_cli.data import Batch
from compress_cli.training import distributed


class Numerics:
    """Precision and memory layout on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mixed = device.type == "cuda" and torch.cuda.is_bf16_supported()

    @property
    def name(self) -> str:
        """For the report."""
        return "bfloat16 autocast, channels last" if self.mixed else "float32"

    def prepare_(self, module: nn.Module) -> None:
        """Lay convolution weights out for the device."""
        if self.device.type == "cuda":
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def look_every(self) -> int:
        """Steps between looks at the loss: each waits for the device, which costs nothing on a CPU."""
        return 1 if self.device.type == "cpu" else 25

    def batch(self, batch: Batch) -> Batch:
        """The batch with images in the layout of the weights."""
        if self.device.type != "cuda":
            return batch
        laid_out = tuple(
            item.to(memory_format=torch.channels_last) if item.dim() == 4 else item for item in batch.inputs
        )
        return dataclasses.replace(batch, inputs=laid_out)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Around forward pass and loss."""
        if not self.mixed:
            return contextlib.nullcontext()
        return torch.autocast("cuda", torch.bfloat16)

    def parallel(self, module: nn.Module, has_unused: Callable[[], bool]) -> nn.Module:
        """The module whose gradients are averaged over all processes; the module itself when alone."""
        if not distributed.active():
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids, find_unused_parameters=has_unused())

    @staticmethod
    def last_part(network: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """Around each accumulated part: gradients are exchanged in the last one only."""
        if isinstance(network, nn.parallel.DistributedDataParallel) and not last:
            return network.no_sync()
        return contextlib.nullcontext()
