"""Learning from the original inside the network too: features at the points where both still have the same shape.

A point is the last module of each output shape, by the order of calls: the end of each stage of a residual network, the
last block of a transformer. Hooks exist only inside `watched`, and nothing is hung on the modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exporters.outputs import evaluating


class FeaturePoints:
    """Outputs of equally named modules of a student and its teacher, as of their last forward passes."""

    def __init__(self, student: nn.Module, teacher: nn.Module, inputs: Sequence[Tensor]) -> None:
        mine, theirs = _shapes(student, inputs), _shapes(teacher, inputs)
        last: dict[tuple[int, ...], str] = {}
        for name, shape in mine.items():
            if theirs.get(name) == shape:
                last[shape] = name
        outputs = {name for name in last.values() if len(mine[name]) <= 2}  # the heads: the logits are compared anyway
        self.names = tuple(name for name in last.values() if name not in outputs)
        self._student = student
        self._teacher = teacher
        self._found: dict[str, Tensor] = {}
        self._wanted: dict[str, Tensor] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the features of every forward pass inside."""
        handles = []
        try:
            for module, store in ((self._student, self._found), (self._teacher, self._wanted)):
                layers = dict(module.named_modules())
                handles += [layers[name].register_forward_hook(_keep(store, name)) for name in self.names]
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._found.clear()
            self._wanted.clear()

    def distance(self) -> Tensor:
        """Mean over the points of squared distance / squared size of the teacher's features."""
        terms = []
        for name in self.names:
            found, wanted = self._found[name].float(), self._wanted[name].float()
            terms.append((found - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12))
        return torch.stack(terms).mean()


def _keep(store: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        store[name] = output

    return hook


def _shapes(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    """Output shapes without the batch of all named modules that return a tensor, in the order of their last calls."""
    found: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                found.pop(name, None)
                found[name] = tuple(output.shape[1:])

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in module.named_modules() if name]
    try:
        with evaluating(module):
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
