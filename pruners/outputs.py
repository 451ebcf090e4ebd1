"""How far the outputs of two runs of a network are apart."""

from __future__ import annotations

from torch import Tensor


def squares(original: Tensor, found: Tensor) -> list[Tensor]:
    """Squared distance, squared size of the original, and its sum over the batch, in float64."""
    one, two = original.double(), found.double()
    if one.dim() == 0:
        one, two = one.unsqueeze(0), two.unsqueeze(0)
    return [(two - one).square().sum(), one.square().sum(), one.sum(0)]
