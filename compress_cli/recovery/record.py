"""What recovery did, as numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LayerRecovery:
    """One layer. Errors are squared and relative to the spread of the original's output, on held-out images.

    Attributes:
        name: of the weight in the compressed network.
        kept: whether the new weights were kept.
        before, after: error with the compressed and with the solved weights.
        ridge: the ridge that did best on held-out images.
        corrected: whether the layer also corrects the sum it ends in.
        uses: how many calls share the weight.
        unknowns: weights (and biases) solved for.
        rows: rows of the fit.
    """

    name: str
    kept: bool
    before: float
    after: float
    ridge: float
    corrected: bool
    uses: int
    unknowns: int
    rows: int


@dataclass(frozen=True, slots=True)
class RecoveryRecord:
    """The whole network.

    Attributes:
        layers: in the order in which they were solved.
        skipped: (weight, reason) of those that were not.
        before, after: squared error of the outputs on held-out images, relative to their spread.
        chosen: the candidate that did best: `as compressed`, `least squares`, or one of them with batch norms anew
            (`norms.py`).
        candidates: error of each candidate.
        images: how many in all; `held_out` of them were not fitted.
        seconds: wall time.
    """

    layers: tuple[LayerRecovery, ...]
    skipped: tuple[tuple[str, str], ...]
    before: float
    after: float
    chosen: str
    candidates: tuple[tuple[str, float], ...]
    images: int
    held_out: int
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether the network was changed."""
        return self.chosen != "as compressed"

    @property
    def summary(self) -> str:
        """The record in one clause, without a full stop."""
        errors = f"output error on {self.held_out:,} held-out images {self.before:.4g} -> {self.after:.4g}"
        if not self.kept:
            return f"nothing came nearer to the original, so nothing was changed; {errors}"
        kept = sum(layer.kept for layer in self.layers)
        solved = f", {kept} of {len(self.layers)} layers" if self.chosen.startswith("least squares") else ""
        return f"{self.chosen} from {self.images:,} unlabelled images{solved}; {errors}; {self.seconds:.0f} s"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**asdict(self), "kept": self.kept, "candidates": dict(self.candidates), "summary": self.summary}
