"""Names of tensors in a module and in its file, which differ where older torchvision releases spelled them so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from compress_cli.checkpoint.names import versions_of, with_versions

if TYPE_CHECKING:
    from compress_cli.checkpoint import LoadedModel

COUNTER = "num_batches_tracked"


def file_names(loaded: LoadedModel) -> dict[str, str]:
    """The module's names -> the file's, found while both still share their memory; empty without a module."""
    if loaded.module is None:
        return {}
    state = {name: value for name, value in loaded.module.state_dict().items() if isinstance(value, Tensor)}
    names = {name: name for name in state if name in loaded.tensors}
    left = {_place(tensor): name for name, tensor in loaded.tensors.items() if name not in names}
    for name, tensor in state.items():
        if name not in names and _place(tensor) in left:
            names[name] = left[_place(tensor)]
    return names


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return int(tensor.untyped_storage()._cdata), tuple(tensor.shape)


def stored_tensors(loaded: LoadedModel, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The module's tensors under the file's names; layers that the run made keep the module's names.

    Counters that the original file lacked (batch norms from before PyTorch 0.4.1) stay absent.
    """
    assert loaded.module is not None
    state = {name: value for name, value in loaded.module.state_dict().items() if isinstance(value, Tensor)}
    counted = any(name.endswith(COUNTER) for name in loaded.tensors)
    kept = {
        names.get(name, name): tensor
        for name, tensor in state.items()
        if name in names or counted or not name.endswith(COUNTER)
    }
    versions = versions_of(loaded.tensors) if kept.keys() == loaded.tensors.keys() else None
    return with_versions(kept.items(), versions)
