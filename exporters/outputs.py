"""A model's outputs as named tensors, and running a model without changing it.

Outputs are flattened in a fixed order. Names: a single tensor is `output`; a sequence gives `output_0`, `output_1`;
mapping keys and dataclass fields become names, nested ones joined with a dot; items of a nested sequence get `_0`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exporters.errors import ExportFailed
from profilers.modes import eval_mode


def flatten_outputs(outputs: Any) -> dict[str, Tensor]:
    """Tensors in `outputs` (tensor, sequence, mapping, named tuple, dataclass, nested) by name, in a fixed order.

    Leaves that are no tensors (None, numbers, strings) are left out: ONNX has no place for them.

    Raises:
        ExportFailed: no tensor at all, or two tensors under one name.

    Example:
        `{"logits": a, "aux": (b, c)}` gives `{"logits": a, "aux_0": b, "aux_1": c}`.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in _leaves(outputs, ""):
        if name in found:
            raise ExportFailed(f"two outputs of the model have the same name {name!r}")
        found[name] = tensor
    if not found:
        raise ExportFailed(f"the model returns no tensor, but {type(outputs).__name__}")
    return found


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name or "output", value
        return
    for key, child in _children(value, name):
        yield from _leaves(child, key)


def _children(value: Any, name: str) -> list[tuple[str, Any]]:
    """(name, value) of what a container holds; nothing for what is no container."""
    fields = _fields(value)
    if fields is not None:
        return [(f"{name}.{key}" if name else str(key), child) for key, child in fields.items()]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [(f"{name or 'output'}_{index}", child) for index, child in enumerate(value)]
    return []


def _fields(value: Any) -> dict[Any, Any] | None:
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    names = getattr(value, "_fields", None)
    if isinstance(value, tuple) and names is not None:
        return dict(zip(names, value, strict=True))
    return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and full fp32 products inside; every module's own training flag comes back afterwards."""
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        with eval_mode(model), torch.no_grad():
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32


def run_model(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Outputs of `model` in eval mode by name, on the CPU."""
    with evaluating(model):
        return {name: tensor.cpu() for name, tensor in flatten_outputs(model(*inputs)).items()}
