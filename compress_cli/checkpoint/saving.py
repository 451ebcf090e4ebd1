"""Write `model.pt`: weights, how to build the network and what was done to it, in one file without pickled code.

The file is a dict that `torch.load(weights_only=True)` reads: format_version, compress_version, architecture, plans,
inputs, metadata, report, state_dict. Names and dtypes of the weights are those of the original file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress_cli.atomic import atomic_path
from compress_cli.checkpoint.architecture import Architecture
from compress_cli.checkpoint.inputs import InputSpec
from compress_cli.checkpoint.names import versions_of, with_versions
from compress_cli.checkpoint.reading import FORMAT_VERSION
from compress_cli.version import __version__


def save(
    path: str | Path,
    *,
    tensors: Mapping[str, Tensor],
    architecture: Architecture | None = None,
    plans: Sequence[Mapping[str, Any]] = (),
    inputs: Sequence[InputSpec] = (),
    metadata: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    safetensors: str | Path | None = None,
) -> Path:
    """Write a checkpoint atomically, and on request a safetensors twin; returns the path.

    tensors: what is written, under their names and in their dtypes (`as_stored` restores the original file's).
    plans, report, extra: JSON-able; `extra` adds top-level entries and cannot replace the format's own.

    Raises:
        InputError: the place cannot be written to, or the disk is full; nothing is left behind.
        TypeError: plans, metadata, report or extra hold something that JSON cannot.
    """
    document = _document(architecture, plans, inputs, metadata, report)
    clash = set(extra or {}) & {*document, "state_dict"}
    if clash:
        raise ValueError(f"extra would replace {sorted(clash)}")
    document |= _plain(extra or {})
    weights = compact(tensors)
    with atomic_path(path) as temporary:
        torch.save({**document, "state_dict": weights}, temporary)
    if safetensors is not None:
        _save_twin(Path(safetensors), weights, document)
    return Path(path)


def as_stored(tensors: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """The tensors in the dtypes that the original file had for their names; others stay as they are.

    Names of one tensor go on sharing it.

    Example: a module ran in float32 and its file was float16: the result is float16 again.
    """
    made: dict[tuple[object, ...], Tensor] = {}
    cast = []
    for name, tensor in tensors.items():
        dtype = dtypes.get(name, tensor.dtype)
        place = (_storage(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), dtype)
        if place not in made:
            made[place] = tensor.detach().to(dtype)
        cast.append((name, made[place]))
    return with_versions(cast, versions_of(tensors))


def compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached CPU tensors; one that is a small view of a large storage nobody else uses is copied out of it.

    torch.save writes whole storages: without this, a slice of a large tensor would carry all of it into the file.
    Tensors that share a storage go on sharing it.
    """
    plain = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    users: dict[int, int] = {}
    for tensor in plain.values():
        users[_storage(tensor)] = users.get(_storage(tensor), 0) + 1
    apart = [
        (name, tensor.clone() if users[_storage(tensor)] == 1 and _is_partial(tensor) else tensor)
        for name, tensor in plain.items()
    ]
    return with_versions(apart, versions_of(tensors))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_partial(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()


def _document(
    architecture: Architecture | None,
    plans: Sequence[Mapping[str, Any]],
    inputs: Sequence[InputSpec],
    metadata: Mapping[str, Any] | None,
    report: Mapping[str, Any] | None,
) -> dict[str, Any]:
    # the two versions come first: `sniff` knows the file by them from its first bytes
    return {
        "format_version": FORMAT_VERSION,
        "compress_version": __version__,
        **_plain(
            {
                "architecture": architecture.to_dict() if architecture else None,
                "plans": list(plans),
                "inputs": [spec.to_dict() for spec in inputs],
                "metadata": dict(metadata or {}),
                "report": dict(report or {}),
            }
        ),
    }


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of JSON's own types only (tuples become lists), so that the file loads with weights_only=True."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _save_twin(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """The same weights as safetensors; architecture, plans and inputs go into its header as one JSON text.

    The format cannot share storages, so tied weights are written twice.
    """
    from safetensors.torch import save_file

    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        shared = _storage(tensor) in seen
        seen.add(_storage(tensor))
        apart[name] = tensor.clone() if shared else tensor.contiguous()
    kept = {name: document[name] for name in ("format_version", "compress_version", "architecture", "plans", "inputs")}
    with atomic_path(path) as temporary:
        save_file(apart, temporary, metadata={"format": "pt", "compress": json.dumps(kept)})
