"""Batch norms anew as candidates of recovery: the degenerate case, alone and on top of the least squares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from compress_cli.recovery.correspondence import Correspondence
from compress_cli.recovery.images import Images
from pruners.batchnorm import Original, candidates_

NORM_BATCHES = 8
"""Batches from which statistics are taken."""
NAMES = {"averages": "batch norms", "shift": "moved batch norms", "half a shift": "half-moved batch norms"}


class NormTries:
    """Ways of taking the statistics, from the images that are fitted; the original's are taken once."""

    def __init__(self, dense: nn.Module, images: Images, device: Any, correspondence: Correspondence) -> None:
        chosen = images.batches[: images.fitted][:NORM_BATCHES]
        self.batches = [tuple(part.to(device) for part in batch) for batch in chosen]
        self.original, self.keep = Original(dense, self.batches), correspondence.keep

    def on(self, compressed: nn.Module, start: str) -> Iterator[str]:
        """Set each way's statistics in turn and yield its name, with that of the state from which it starts."""

        def run() -> None:
            for batch in self.batches:
                compressed(*batch)

        prefix = "" if start == "as compressed" else f"{start} + "
        for way in candidates_(compressed, run, self.original, self.keep):
            yield f"{prefix}{NAMES[way]}"
