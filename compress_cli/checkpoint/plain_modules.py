"""Pickled networks made only of torch.nn's and torchvision's own layers: loaded without running code from the file.

`weights_only` unpickling may create objects of allow-listed classes. Allowed here are subclasses of `nn.Module` that
torch.nn.modules, torchvision.models or torchvision.ops define: creating one runs library code only. What the file sets
on them is then checked: a hook, or an attribute in the place of a method, would run something at the first forward.
"""

from __future__ import annotations

import importlib
import sys

from torch import nn

_HOMES = ("torch.nn.modules.", "torchvision.models.", "torchvision.ops.")


def library_layers(names: list[str]) -> list[type[nn.Module]] | None:
    """The classes of these dotted names when all are layers of the two libraries; None otherwise."""
    found = [_layer(name) for name in names]
    return [layer for layer in found if layer is not None] if all(found) else None


def _layer(name: str) -> type[nn.Module] | None:
    home, _, attribute = name.rpartition(".")
    if not f"{home}.".startswith(_HOMES):
        return None
    if home.startswith("torchvision."):
        importlib.import_module("torchvision")
    # only what the libraries import themselves: a file must not choose which modules get imported
    found = getattr(sys.modules.get(home), attribute, None)
    is_layer = isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == home
    return found if is_layer else None


def tampered_layer(module: nn.Module) -> str | None:
    """Name of a layer whose attributes would run something of the file's choice; None when there is none."""
    for name, layer in module.named_modules():
        state = vars(layer)
        hooks = any("_hook" in key and value for key, value in state.items())
        shadows = any(callable(getattr(type(layer), key, None)) for key in state)
        if hooks or shadows or state.get("_compiled_call_impl") is not None:
            return name or type(layer).__name__
    return None
