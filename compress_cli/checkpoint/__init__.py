"""Checkpoints: tell kinds apart, read them safely, rebuild and recognise architectures, write our own format.

Names are looked up on first use, so that importing this package, or `checkpoint.sniff`, does not import torch.
(The function `sniff` is imported from its module, whose name it shares.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from compress_cli.checkpoint.architecture import Architecture, build, parse_architecture
    from compress_cli.checkpoint.inputs import (
        InputSpec,
        default_input_shape,
        default_inputs,
        example_inputs,
        parse_input,
        parse_inputs,
    )
    from compress_cli.checkpoint.loading import LoadedModel, apply_plan_, load
    from compress_cli.checkpoint.reading import RawCheckpoint, read_tensors
    from compress_cli.checkpoint.recognition import Recognition, recognise
    from compress_cli.checkpoint.saving import as_stored, save
    from compress_cli.checkpoint.sniff import Kind

_HOMES = {
    "Architecture": "architecture",
    "InputSpec": "inputs",
    "Kind": "sniff",
    "LoadedModel": "loading",
    "RawCheckpoint": "reading",
    "Recognition": "recognition",
    "apply_plan_": "loading",
    "as_stored": "saving",
    "build": "architecture",
    "default_input_shape": "inputs",
    "default_inputs": "inputs",
    "example_inputs": "inputs",
    "load": "loading",
    "parse_architecture": "architecture",
    "parse_input": "inputs",
    "parse_inputs": "inputs",
    "read_tensors": "reading",
    "recognise": "recognition",
    "save": "saving",
}

__all__ = [
    "Architecture",
    "InputSpec",
    "Kind",
    "LoadedModel",
    "RawCheckpoint",
    "Recognition",
    "apply_plan_",
    "as_stored",
    "build",
    "default_input_shape",
    "default_inputs",
    "example_inputs",
    "load",
    "load_module",
    "parse_architecture",
    "parse_input",
    "parse_inputs",
    "read_tensors",
    "recognise",
    "save",
]


def __getattr__(name: str) -> Any:
    """Import the submodule that holds a public name."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_module(path: str, **options: Any) -> nn.Module:
    """Rebuild the network of a checkpoint in eval mode; options are those of `loading.load`.

    Raises:
        InputError: the file is damaged, or nothing says how to build its network.
    """
    from compress_cli.checkpoint.loading import load
    from compress_cli.errors import InputError

    loaded = load(path, **options)
    if loaded.module is None:
        raise InputError(f"{path} holds weights, but nothing says how to build their network", loaded.missing_reason)
    return loaded.module
