"""`--teacher FILE`: the original to learn from, where it is not the model that a run starts with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress_cli.checkpoint import load
from compress_cli.checkpoint.reading import read_tensors
from compress_cli.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from compress_cli.config import RunConfig


def open_teacher(config: RunConfig) -> nn.Module:
    """The network in `--teacher`, in eval mode; built like the run's own where the file does not say how.

    Raises:
        InputError: the file cannot be read or its network not be built.
    """
    path = str(config.teacher)
    arch, arguments = config.arch, config.arch_args
    if arch is None and not read_tensors(path, config.trust_pickle).document.get("architecture"):
        stored = read_tensors(config.checkpoint, config.trust_pickle).document.get("architecture")
        if stored:
            arch = str(stored["reference"])
            arguments = tuple(f"{name}={value!r}" for name, value in dict(stored.get("args") or {}).items())
    loaded = load(path, arch=arch, arch_args=arguments, trust_pickle=config.trust_pickle, seed=config.seed)
    if loaded.module is None:
        raise InputError(f"--teacher {path}: {loaded.missing_reason}", "pass --arch, which serves the teacher too")
    return loaded.module
