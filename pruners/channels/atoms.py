"""The tensors of a module and their atoms: one id per (tensor, dim, index) of floating-point data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from pruners.channels.labels import Ids, Labels
from pruners.channels.planes import Value


@dataclass(frozen=True, slots=True)
class Slot:
    """One storage of the module under its first name.

    Attributes:
        aliases: further names of the same tensor.
        kind: `parameter`, `buffer` or `attribute` (a plain tensor).
        starts: first id per dim; dims of size 1 have none.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    aliases: tuple[str, ...]
    starts: dict[int, int]

    def ids(self, dim: int) -> Ids:
        """The atoms along a dim."""
        return np.arange(self.starts[dim], self.starts[dim] + self.shape[dim], dtype=np.int64)

    def value(self) -> Value:
        """The tensor as a traced value."""
        return Value(self.shape, {dim: self.ids(dim) for dim in self.starts})


@dataclass(frozen=True, slots=True)
class Atoms:
    """All slots of a module.

    Attributes:
        by_name: every name, aliases included, to its slot.
        first_buffer: ids from here on belong to no parameter.
        overlapping: names that share storage in another shape; to be frozen.
    """

    slots: tuple[Slot, ...]
    by_name: dict[str, Slot]
    first_buffer: int
    overlapping: tuple[str, ...]


def plain_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are plain attributes of modules, neither parameters nor buffers."""
    for prefix, module in model.named_modules():
        for name, item in vars(module).items():
            if isinstance(item, Tensor):
                yield (f"{prefix}.{name}" if prefix else name), item


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """Yield (name, tensor, kind) for parameters, buffers and plain attributes, each under every name."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, parameter, "parameter"
    for name, buffer in model.named_buffers(remove_duplicate=False):
        yield name, buffer, "buffer"
    for name, tensor in plain_tensors(model):
        yield name, tensor, "attribute"


def collect(model: nn.Module, labels: Labels) -> Atoms:
    """Give ids to every floating-point tensor of a module, parameters first; tied tensors share theirs."""
    names: dict[tuple[object, ...], list[str]] = {}
    first: dict[tuple[object, ...], tuple[Tensor, str]] = {}
    for name, tensor, kind in named_tensors(model):
        if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
            continue
        key = _identity(tensor)
        names.setdefault(key, []).append(name)
        first.setdefault(key, (tensor, kind))
    slots, first_buffer = [], None
    for key, (tensor, kind) in sorted(first.items(), key=lambda item: item[1][1] != "parameter"):
        if kind != "parameter" and first_buffer is None:
            first_buffer = labels.size
        starts = {dim: int(labels.fresh(size)[0]) for dim, size in enumerate(tensor.shape) if size > 1}
        slots.append(Slot(names[key][0], tuple(tensor.shape), kind, tuple(names[key][1:]), starts))
    by_name = {name: slot for slot in slots for name in (slot.name, *slot.aliases)}
    overlapping = _overlapping([(names[key][0], tensor) for key, (tensor, _) in first.items()])
    return Atoms(tuple(slots), by_name, labels.size if first_buffer is None else first_buffer, overlapping)


def _identity(tensor: Tensor) -> tuple[object, ...]:
    if tensor.is_meta:
        return (id(tensor),)
    return (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def _overlapping(tensors: list[tuple[str, Tensor]]) -> tuple[str, ...]:
    """Names of different views into one storage that touch the same bytes."""
    by_storage: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in tensors:
        if tensor.is_meta:
            continue
        span = sum(int((size - 1) * stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        begin, item = int(tensor.storage_offset()) * tensor.element_size(), tensor.element_size()
        key = tensor.untyped_storage().data_ptr()
        by_storage.setdefault(key, []).append((begin, begin + (span + 1) * item, name))
    found: set[str] = set()
    for spans in by_storage.values():
        spans.sort()
        for (_, end, one), (begin, _, two) in pairwise(spans):
            if begin < end:
                found |= {one, two}
    return tuple(sorted(found))


def resolve(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds a tensor and the attribute's own name."""
    prefix, _, attribute = name.rpartition(".")
    return model.get_submodule(prefix), attribute


def tensor_at(model: nn.Module, name: str) -> Tensor:
    """The tensor under a dotted name."""
    module, attribute = resolve(model, name)
    found = getattr(module, attribute)
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"{name} is not a tensor")
    return found
