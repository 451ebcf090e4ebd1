"""An exponential moving average of the weights (Polyak averaging), kept in float32 beside the network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """Averaged copies of all floating-point parameters and buffers; whole-number buffers follow the network.

    The decay rises as (1 + n) / (10 + n) over the first updates n, so that the random start is forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update_(self, module: nn.Module) -> None:
        """Take the network's present weights in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine: list[Tensor] = []
        theirs: list[Tensor] = []
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                mine.append(self.tensors[name])
                theirs.append(tensor)
            else:
                self.tensors[name].copy_(tensor)
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"updates": self.updates, "tensors": self.tensors}

    def load_state_dict(self, saved: Mapping[str, object]) -> None:
        """From a checkpoint."""
        self.updates = int(saved["updates"])  # type: ignore[call-overload]
        for name, tensor in saved["tensors"].items():  # type: ignore[attr-defined]
            self.tensors[name].copy_(tensor)
