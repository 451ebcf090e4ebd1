"""`compress`: make trained PyTorch vision models small and fast, and prove that they still work.

Two names are public: `__version__` and `load`, which rebuilds a model that `compress` wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compress_cli.version import __version__

if TYPE_CHECKING:
    from torch import nn

__all__ = ["__version__", "load"]


def load(path: str, **options: Any) -> nn.Module:
    """Rebuild the module stored in a `model.pt` that `compress` wrote, in eval mode, without running pickled code.

    Example: `model = compress_cli.load("resnet50-magnitude/model.pt")`.

    Raises:
        compress_cli.errors.InputError: the file is damaged, or holds no architecture to rebuild.
    """
    from compress_cli.checkpoint import load_module

    return load_module(path, **options)
