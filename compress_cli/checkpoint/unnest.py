"""Find the weights inside what a checkpoint unpickled to: known entries, single nested dicts, wrapper prefixes.

The first of `NEST_KEYS` whose value is a module or a dict with tensors is taken, again inside it; then `module.`,
`_orig_mod.` and `model.` are stripped when all keys share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress_cli.checkpoint.sniff import NEST_KEYS
from compress_cli.errors import InputError

PREFIXES = ("module.", "_orig_mod.", "model.")
_DEEPEST = 4
_SAVE = "save the weights alone: torch.save(model.state_dict(), 'weights.pt')"


@dataclass(frozen=True, slots=True)
class Found:
    """Weights and what lay around them: `weights` is a dict of tensors or a module, `key_path` says where."""

    weights: Mapping[str, Any] | nn.Module
    key_path: str
    ignored: tuple[str, ...]
    metadata: dict[str, Any]
    notes: tuple[str, ...]


def find_weights(payload: Any, name: str) -> Found:
    """Descend to the dict of tensors (or the module) inside `payload`; `name` is the file's, for messages.

    Example: `{'epoch': 3, 'state_dict': {...}}` gives key_path `state_dict`, metadata `{'epoch': 3}`.

    Raises:
        InputError: there are no tensors, or several sets of them.
    """
    level: Any = payload
    path: list[str] = []
    notes: list[str] = []
    ignored: list[str] = []
    metadata: dict[str, Any] = {}
    for _ in range(_DEEPEST):
        if isinstance(level, nn.Module):
            return Found(level, ".".join(path), tuple(ignored), metadata, tuple(notes))
        _require_mapping(level, name, path)
        key = _entry_with_weights(level, name)
        if key is None:
            return Found(level, ".".join(path), tuple(ignored), metadata, tuple(notes))
        others = {other: value for other, value in level.items() if other != key}
        metadata |= {str(other): plain for other, value in others.items() if (plain := _scalar(value)) is not None}
        ignored += [str(other) for other, value in others.items() if _scalar(value) is None]
        twins = [other for other in NEST_KEYS if other in others and has_tensors(others[other])]
        if twins:
            notes.append(f"used the weights under {key!r}; {', '.join(map(repr, twins))} also hold weights")
        level = level[key]
        path.append(str(key))
    raise InputError(f"{name} nests its weights more than {_DEEPEST} levels deep ({'.'.join(path)})", _SAVE)


def has_tensors(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether a value is a module or a dict with tensors somewhere in it (an optimizer's state is not)."""
    if isinstance(value, nn.Module):
        return True
    if not isinstance(value, Mapping) or "param_groups" in value or depth == 0:
        return False
    return any(isinstance(item, Tensor) or has_tensors(item, depth - 1) for item in value.values())


def strip_prefixes(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Strip wrapper prefixes that all keys share; returns the tensors, the whole prefix, and dropped counters.

    `n_averaged`, which `torch.optim.swa_utils.AveragedModel` (EMA) puts beside `module.*`, is dropped with the wrapper.
    Example: `{'module._orig_mod.fc.weight': w}` gives `{'fc.weight': w}` and `module._orig_mod.`.
    """
    whole = ""
    dropped: tuple[str, ...] = ()
    if "n_averaged" in tensors and all(name.startswith("module.") for name in tensors if name != "n_averaged"):
        tensors = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
        dropped = ("n_averaged",)
    while prefix := next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), ""):
        if any(name == prefix for name in tensors):
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        whole += prefix
    return tensors, whole, dropped


def _require_mapping(level: Any, name: str, path: list[str]) -> None:
    where = f"{name} ({'.'.join(path)})" if path else name
    if not isinstance(level, Mapping):
        raise InputError(f"{where} holds a {type(level).__name__}, not a dict of named tensors", _SAVE)
    if not level:
        raise InputError(f"{where} holds an empty dict: there are no weights in it", _SAVE)


def _entry_with_weights(level: Mapping[str, Any], name: str) -> str | None:
    """The entry to descend into; None when the tensors lie directly in `level`."""
    known = next((key for key in NEST_KEYS if key in level and has_tensors(level[key])), None)
    if known is not None:
        return known
    if any(isinstance(value, Tensor) for value in level.values()):
        return None
    inside = [key for key, value in level.items() if has_tensors(value)]
    if len(inside) == 1:
        return inside[0]
    if not inside:
        keys = ", ".join(repr(key) for key in list(level)[:8])
        raise InputError(f"{name} holds no tensors (its keys: {keys})", _SAVE)
    sets = ", ".join(f"{key!r} ({len(level[key])} entries)" for key in inside[:6] if isinstance(level[key], Mapping))
    raise InputError(
        f"{name} holds several sets of weights: {sets or inside}",
        f"save the one to compress alone: torch.save(torch.load(FILE)[{inside[0]!r}], 'weights.pt')",
    )


def _scalar(value: Any) -> Any:
    """A JSON-able scalar of a value worth keeping as metadata; None for anything else."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and value.numel() == 1 and value.dim() == 0 and value.dtype != torch.complex64:
        return value.item()
    return None
