"""The compression methods by name: a literal table, imported on use, and what the pipeline asks of each of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress_cli.methods.base import Method

METHODS: dict[str, tuple[str, str]] = {
    "magnitude": ("compress_cli.methods.magnitude:Magnitude", "global magnitude pruning"),
    "channels": ("compress_cli.methods.channels:Channels", "channel pruning"),
    "alds": ("compress_cli.methods.alds:Alds", "layer-wise low-rank decomposition (ALDS)"),
    "pagcp": ("compress_cli.methods.pagcp:Pagcp", "channel pruning under a limit per task"),
    "svd": ("compress_cli.methods.alds:Svd", "low-rank decomposition, uniform rank"),
    "svd-energy": ("compress_cli.methods.alds:SvdEnergy", "low-rank decomposition, uniform energy"),
    "pca": ("compress_cli.methods.alds:Pca", "low-rank decomposition by output variance"),
    "finetune": ("compress_cli.methods.finetune:Finetune", "fine-tuning"),
}
"""method -> (module:class, what it is called in reports)."""


def method_named(name: str) -> Method:
    """The method behind `--method NAME` (a key of `METHODS`)."""
    home, _, kind = METHODS[name][0].partition(":")
    method: Method = getattr(importlib.import_module(home), kind)()
    return method
