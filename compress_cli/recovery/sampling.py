"""Rows of a layer's input for Gram matrices: all of them, or a fixed number drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from compress_cli.recovery.stream import Stream
from compress_cli.recovery.trace import Call


def sampled_patches(
    stream: Stream, index: int, call: Call, *, limit: int, constant: bool, generator: torch.Generator
) -> Tensor:
    """What one batch gives a product to read, (groups, rows, columns): at most `limit` places of the batch.

    Args:
        constant: add a column of ones, for an offset.
    """
    windows = call.geometry.windows(stream.values(index, [call.input])[call.input])
    places = call.geometry.places(windows).numel()
    chosen = None
    if places > limit:
        chosen = torch.randperm(places, generator=generator)[:limit].sort().values.to(windows.device)
    patches: Tensor = call.geometry.rows(windows, chosen)
    return torch.cat([patches, patches.new_ones(*patches.shape[:2], 1)], 2) if constant else patches
