"""How far a network's outputs move when some of its weights change, measured on images.

Squared derivatives say how much the outputs feel an error somewhere, but only as long as errors at different positions,
channels and layers are independent. They are not: what one missing channel takes away points the same way at every
position, which average pooling at the end adds up, and in every block that reads the channel. Prices made of
derivatives are therefore brought into one currency by running the network with what they describe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from compress_cli.recovery.images import Batch
from compress_cli.recovery.jobs import output_offset
from compress_cli.recovery.outputs import output_error
from compress_cli.recovery.stream import Stream
from compress_cli.recovery.trace import Call, Traced


class Reaction:
    """A traced network and its outputs for some images.

    Args:
        batches: of the traced batch size, on the network's device.
        budget: bytes of values kept between layers, see `settle`.
    """

    def __init__(self, traced: Traced, batches: Sequence[Batch], budget: int) -> None:
        self.traced = traced
        self.stream = Stream(traced, batches, budget, batches[0][0].device)
        self.before = [self.stream.outputs(index) for index in range(len(batches))]
        self.calls: dict[str, list[Call]] = {}
        for call in traced.calls():
            self.calls.setdefault(call.weight, []).append(call)

    def settle(self, names: Iterable[str]) -> None:
        """Only layers with these weights will be changed from now on: what lies before them runs no more."""
        self.stream.settle({call.node for name in names for call in self.calls[name]})

    def error(self, changed: Mapping[str, Tensor]) -> float:
        """Squared distance of the outputs relative to their spread, with these weights in place of the stored ones.

        Args:
            changed: weight -> (groups, columns, outputs), with a last row for what is added to the layer's output
                where a bias or a batch norm's mean can hold it. The network is as before afterwards.
        """
        with self._written(changed):
            pairs = ((before, self.stream.outputs(index)) for index, before in enumerate(self.before))
            return output_error(pairs)

    def factor(self, predicted: float, changed: Mapping[str, Tensor]) -> float | None:
        """What to multiply a predicted error by to get the measured one; None where there is nothing to compare."""
        if predicted <= 0:
            return None
        found = self.error(changed) / predicted
        return found if math.isfinite(found) and found > 0 else None

    @contextmanager
    def _written(self, changed: Mapping[str, Tensor]) -> Iterator[None]:
        tensors = self.traced.tensors()
        saved: dict[str, Tensor] = {}

        def put(name: str, value: Tensor) -> None:
            saved.setdefault(name, tensors[name].detach().clone())
            tensors[name].copy_(value)

        with torch.no_grad():
            try:
                for name, matrix in changed.items():
                    calls, weight = self.calls[name], tensors[name]
                    columns = calls[0].geometry.matrix(weight).shape[1]
                    offset = output_offset(self.traced, calls) if matrix.shape[1] > columns else None
                    put(name, calls[0].geometry.weight(matrix[:, :columns], weight))
                    if offset is not None:
                        stored = tensors[offset.name]
                        added = matrix[:, columns:].reshape(stored.shape).to(stored.dtype)
                        put(offset.name, stored + offset.sign * added)
                yield
            finally:
                for name, value in saved.items():
                    tensors[name].copy_(value)
