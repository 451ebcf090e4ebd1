"""Cut a user's modules in place as a plan says: slice tensors, repair the sizes that modules remember.

Everything new is computed before anything is written, and the writes are plain assignments: a model is never left
half changed. Names and classes stay, tied tensors stay tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pruners.channels.atoms import Atoms, collect, resolve, tensor_at
from pruners.channels.errors import ChannelsMismatch
from pruners.channels.groups import fingerprint
from pruners.channels.labels import Labels
from pruners.channels.plan_type import AttributeEdit, ChannelsPlan

Edits = list[tuple[nn.Module, str, Any]]


def check_fits(model: nn.Module, plan: ChannelsPlan) -> None:
    """Refuse a model whose names or shapes are not those the plan was made for.

    Raises:
        ChannelsMismatch: with one line per difference.
    """
    atoms = collect(model, Labels())
    problems = []
    for name, shape in plan.shapes.items():
        slot = atoms.by_name.get(name)
        if slot is None:
            problems.append(f"it has no tensor {name}")
        elif slot.shape != shape:
            problems.append(f"{name} has shape {list(slot.shape)}, the plan was made for {list(shape)}")
    if not problems and fingerprint(atoms) != plan.fingerprint:
        problems.append("names and shapes are not those of the architecture the plan was made for")
    if problems:
        raise ChannelsMismatch(tuple(problems))


def cut_(model: nn.Module, plan: ChannelsPlan) -> None:
    """Slice parameters and buffers in place and fix known and planned attributes.

    Optimisers still hold the old parameters afterwards and must be made anew.

    Raises:
        ChannelsMismatch: the model is not the one planned for; nothing was changed.
    """
    check_fits(model, plan)
    atoms = collect(model, Labels())
    tensors = _new_tensors(model, plan, atoms)
    edits = _known_attributes(model, plan, atoms)
    edits += [(model.get_submodule(edit.module), edit.name, _value(edit)) for edit in plan.attributes]
    for name, tensor in tensors.items():
        module, attribute = resolve(model, name)
        _assign(module, attribute, tensor)
    for module, attribute, value in edits:
        setattr(module, attribute, value)


def _value(edit: AttributeEdit) -> Any:
    return tuple(edit.new) if isinstance(edit.new, (list, tuple)) else edit.new


def sliced(tensor: Tensor, keep: Mapping[int, tuple[int, ...]]) -> Tensor:
    """Return the kept part of a tensor, in the memory format it has."""
    made = tensor.detach()
    for dim, kept in keep.items():
        made = made.index_select(dim, torch.tensor(kept, dtype=torch.long, device=tensor.device))
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        return made.contiguous(memory_format=torch.channels_last)
    return made.contiguous()


def _new_tensors(model: nn.Module, plan: ChannelsPlan, atoms: Atoms) -> dict[str, Tensor]:
    """Every name to its new tensor; tied names share one object."""
    made: dict[str, Tensor] = {}
    for name, keep in plan.keep.items():
        old = tensor_at(model, name)
        new: Tensor = sliced(old, keep)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        else:
            new.requires_grad_(old.requires_grad)
        slot = atoms.by_name[name]
        for alias in (slot.name, *slot.aliases):
            made[alias] = new
    return made


def _assign(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    for store in (module._parameters, module._buffers):
        if attribute in store:
            store[attribute] = tensor  # type: ignore[assignment]
            return
    setattr(module, attribute, tensor)


def _known_attributes(model: nn.Module, plan: ChannelsPlan, atoms: Atoms) -> Edits:
    """Sizes that torch's own modules remember, by the tensor that tells them."""
    edits: Edits = []
    for prefix, module in model.named_modules():
        lead = f"{prefix}." if prefix else ""

        def width(own: str, dim: int, lead: str = lead) -> int | None:
            slot = atoms.by_name.get(lead + own)
            kept = plan.keep.get(slot.name, {}).get(dim) if slot is not None else None
            return None if kept is None else len(kept)

        edits += [(module, name, value) for name, value in _sizes(module, width).items()]
    return edits


def _sizes(module: nn.Module, width: Any) -> dict[str, Any]:
    if isinstance(module, nn.modules.conv._ConvNd):
        return _conv_sizes(module, width)
    if isinstance(module, nn.Linear):
        return _given(out_features=_weight(width, 0), in_features=_weight(width, 1))
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)):
        return _given(num_features=_first(width("weight", 0), width("running_mean", 0)))
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        shape = [width("weight", dim) or size for dim, size in enumerate(module.normalized_shape)]
        return _given(normalized_shape=tuple(shape) if tuple(shape) != tuple(module.normalized_shape) else None)
    if isinstance(module, nn.GroupNorm):
        return _given(num_channels=width("weight", 0))
    if isinstance(module, nn.PReLU):
        return _given(num_parameters=width("weight", 0))
    if isinstance(module, nn.Embedding):
        return _given(num_embeddings=width("weight", 0), embedding_dim=width("weight", 1))
    if type(module).__name__ == "FrozenBatchNorm2d" and isinstance(getattr(module, "num_features", None), int):
        return _given(num_features=width("weight", 0))
    return {}


def _conv_sizes(module: nn.modules.conv._ConvNd, width: Any) -> dict[str, Any]:
    rows, inner = _weight(width, 0), _weight(width, 1)
    if module.transposed:
        groups = module.groups
        if groups > 1 and groups == module.in_channels and rows is not None:
            groups = rows
        out = None if inner is None and groups == module.groups else (inner or module.out_channels // module.groups)
        return _given(in_channels=rows, out_channels=None if out is None else out * groups, groups=groups)
    if module.groups > 1 and module.groups == module.in_channels:
        if rows is None:
            return {}
        groups = rows * module.groups // module.out_channels
        return {"out_channels": rows, "in_channels": groups, "groups": groups}
    return _given(out_channels=rows, in_channels=None if inner is None else inner * module.groups)


def _weight(width: Any, dim: int) -> int | None:
    """A width of the weight, also where a parametrization holds it."""
    found = (width("weight", dim), width("parametrizations.weight.original", dim))
    more = (width("parametrizations.weight.original1", dim), width("weight_v", dim))
    return _first(*found, *more)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
