"""How the arithmetic of training runs on a device: plain float32 on a CPU; on a GPU bfloat16 products, channels last.

Networks that cannot run in channels last (convolutions over volumes, `.view` of feature maps) keep channels first, and
on a CPU those with wide convolutions, which oneDNN mostly computes faster so (benchmarks/cpu_layouts.py).

The float32 weights and their gradients stay float32 everywhere. float16 products need their loss scaled, as small
gradients would vanish (Micikevicius et al., "Mixed precision training", ICLR 2018, arXiv 1710.03740): the scale grows
while gradients stay finite, and a step whose gradients overflow is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compress_cli.data import Batch
from compress_cli.errors import CompressError
from compress_cli.training import distributed
from exporters.outputs import evaluating
from profilers.modes import modes_kept

_TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NARROW = 800
"""Weights per output channel of a network's convolutions: 418 in a CIFAR ResNet-56, 128 in MobileNetV2,
883 in ResNet-50, 3,350 in VGG-11."""
_NAMES = {None: "float32", torch.bfloat16: "bfloat16 autocast", torch.float16: "float16 autocast, scaled loss"}


class Numerics:
    """Precision and memory layout on one device.

    Args:
        precision: `fp32`, `bf16`, `fp16`, or `auto`: float32 on a CPU, the 16-bit type that a GPU has units for.
    """

    def __init__(self, device: torch.device, precision: str = "auto") -> None:
        self.device = device
        self._type = _TYPES[precision] if precision != "auto" else _usual_type(device)
        self._channels_last = False
        self._layout = ""
        self._scaler: Any = torch.amp.GradScaler(device.type, enabled=self._type is torch.float16)

    @property
    def name(self) -> str:
        """For the report."""
        return _NAMES[self._type] + self._layout

    def prepare_(self, module: nn.Module, sample: Callable[[], Batch], teacher: nn.Module | None = None) -> None:
        """Lay convolution weights out for the device: channels last where that is fast, and student and teacher run."""
        if self.device.type != "cuda" and not is_narrow(module):
            return
        if any(tensor.dim() == 5 for tensor in itertools.chain(module.parameters(), module.buffers())):
            self._layout = ", channels first (5-D weights)"
            return
        self._channels_last = True
        self._layout = ", channels last"
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = self.batch(sample()).inputs
        try:
            for network in (module, teacher):
                if network is not None:
                    with evaluating(network), self.autocast():
                        network(*inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._give_up_(module, error)

    def try_(self, module: nn.Module, loss_of: Callable[[], Tensor]) -> None:
        """Go back to the usual layout where a whole step fails in the other one; losses and branches may need it.

        Args:
            loss_of: the loss of a sample in train mode. Weights, statistics and random numbers stay as they are.
        """
        if not self._channels_last:
            return
        kept = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with modes_kept(module), torch.random.fork_rng(devices):
                module.train()
                loss_of().backward()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, CompressError) as error:  # training says it again where the layout is not the cause
            self._give_up_(module, error)
        finally:
            module.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    buffer.copy_(kept[name])

    def _give_up_(self, module: nn.Module, error: Exception) -> None:
        self.release_(module)
        self._channels_last = False
        self._layout = f", channels first (channels last fails: {(str(error).splitlines() or [''])[0][:120]})"

    def release_(self, module: nn.Module) -> None:
        """Undo `prepare_`: what is exported and measured after training has the usual layout."""
        if self._channels_last:
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    @property
    def look_every(self) -> int:
        """Steps between looks at the loss: each waits for the device, which costs nothing on a CPU."""
        return 1 if self.device.type == "cpu" else 25

    def batch(self, batch: Batch) -> Batch:
        """The batch with images in the layout of the weights."""
        if not self._channels_last:
            return batch
        laid_out = tuple(
            item.to(memory_format=torch.channels_last) if item.dim() == 4 else item for item in batch.inputs
        )
        return dataclasses.replace(batch, inputs=laid_out)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Around forward pass and loss."""
        if self._type is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._type)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled where the precision needs it."""
        self._scaler.scale(loss).backward()

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the gradients their true size, once before a step."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser's step, left out when scaled gradients overflowed; fused optimisers decide on the device."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The scale and how long it has held; empty without scaling."""
        state: dict[str, Any] = self._scaler.state_dict()
        return state

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """From a checkpoint."""
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(saved)

    def parallel(self, module: nn.Module, has_unused: Callable[[], bool]) -> nn.Module:
        """The module whose gradients are averaged over all processes; the module itself when alone."""
        if not distributed.active():
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids, find_unused_parameters=has_unused())

    @staticmethod
    def last_part(network: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """Around each accumulated part: gradients are exchanged in the last one only."""
        network = getattr(network, "_orig_mod", network)  # inside torch.compile
        if isinstance(network, nn.parallel.DistributedDataParallel) and not last:
            return network.no_sync()
        return contextlib.nullcontext()


def is_narrow(module: nn.Module) -> bool:
    """Whether a CPU computes a network faster in channels last: batch norms, and few weights per output channel."""
    layers = list(module.modules())
    kernels = [layer.weight for layer in layers if isinstance(layer, nn.Conv2d) and layer.weight.numel()]
    norms = any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    if not kernels or not norms or any(isinstance(layer, nn.LayerNorm) for layer in layers):
        return False
    return sum(kernel.numel() for kernel in kernels) <= NARROW * sum(len(kernel) for kernel in kernels)


def _usual_type(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
