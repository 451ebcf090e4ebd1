"""How a model uses its layers: sizes of every call, and every use that a pair of layers could not serve.

Each layer is wrapped for one forward pass. A replaced layer can only be called with one tensor, so a layer is left
alone when the model reads its attributes (attention reads `out_proj.weight`), passes further arguments, or never
calls it. The wrapper hands reads on, so the pass itself runs as always; it is taken off again whatever happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from profilers.modes import eval_mode

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer: sizes of input and output, batch and channels included."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(slots=True)
class Use:
    """What one forward pass did with a layer."""

    calls: list[Call] = field(default_factory=list)
    misuse: str | None = None


class _Probe(nn.Module):
    """Stands for a layer during one pass, records calls and reads, and hands both on."""

    def __init__(self, layer: nn.Module, use: Use) -> None:
        super().__init__()
        self._modules["_layer"] = layer
        self.__dict__["_use"] = use
        self.__dict__["training"] = layer.training

    def __getattr__(self, name: str) -> Any:
        layer = self.__dict__["_modules"]["_layer"]
        value = getattr(layer, name)
        self.__dict__["_use"].misuse = f"the model reads its attribute `{name}` directly"
        return value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        modules, use = self.__dict__["_modules"], self.__dict__["_use"]
        result = modules["_layer"](*args, **kwargs)
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            use.misuse = "it is called with more than one tensor"
        else:
            use.calls.append(Call(tuple(args[0].shape), tuple(result.shape)))
        return result


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model with a tensor, a sequence of positional arguments, or a mapping of keyword arguments."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs)


def owners(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Return every place (parent, attribute) at which each module hangs."""
    found: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for attribute, child in parent._modules.items():
            if child is not None:
                found.setdefault(child, []).append((parent, attribute))
    return found


def observe(model: nn.Module, inputs: Inputs, layers: Sequence[nn.Module]) -> dict[nn.Module, Use]:
    """Run a model once and return how it used each of the layers. The model is as before afterwards."""
    uses = {layer: Use() for layer in layers}
    places = owners(model)
    with eval_mode(model), torch.no_grad():
        probes = {layer: _Probe(layer, use) for layer, use in uses.items()}
        try:
            for layer, probe in probes.items():
                for parent, attribute in places.get(layer, ()):
                    parent._modules[attribute] = probe
            run(model, inputs)
        finally:
            for layer in layers:
                for parent, attribute in places.get(layer, ()):
                    parent._modules[attribute] = layer
    return uses
