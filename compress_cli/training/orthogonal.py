"""Keeping the encoders of factors orthogonal while they train: a penalty on the angles between their rows.

A decomposed layer is decoder * encoder; right after the decomposition the encoder's rows are orthogonal (scaled right
singular vectors). Training may let them collapse onto each other, which wastes rank. With rows e_i of a slice the
penalty is the mean over i != k of cos(e_i, e_k)^2, between 0 (orthogonal) and 1 (one direction); lengths are free.
Cf. the orthogonality regularisation of Yang et al., "Learning low-rank deep neural networks via singular vector
orthogonality regularization", CVPR workshops 2020, arXiv 2004.09031, which fixes the lengths too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def factored_layers(plans: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the layers that plan documents have put pairs in place of."""
    from decomposers.alds_plan import METHOD

    names = [str(layer["name"]) for plan in plans if plan.get("method") == METHOD for layer in plan.get("layers", ())]
    return tuple(dict.fromkeys(names))


class Encoders:
    """The encoders of some pairs that have more than one row a slice."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        from decomposers.factorize import halves

        known = dict(module.named_modules())
        pairs = [known[name] for name in names if isinstance(known.get(name), nn.Sequential)]
        encoders = [halves(pair)[0] for pair in pairs]
        self._encoders = [encoder for encoder in encoders if rows_of(encoder).shape[1] > 1]

    def __len__(self) -> int:
        return len(self._encoders)

    def penalty(self) -> Tensor:
        """Mean over the encoders of the mean squared cosine between different rows; differentiable."""
        return torch.stack([_mean_squared_cosine(rows_of(encoder)) for encoder in self._encoders]).mean()


def rows_of(encoder: Any) -> Tensor:
    """An encoder's weight as (slices, rank, columns)."""
    weight: Tensor = encoder.weight
    slices = getattr(encoder, "groups", 1)
    if isinstance(encoder, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return weight.view(slices, weight.shape[0] // slices, weight.shape[1], -1).transpose(1, 2).flatten(2)
    return weight.reshape(slices, weight.shape[0] // slices, -1)


def _mean_squared_cosine(rows: Tensor) -> Tensor:
    unit = F.normalize(rows.float(), dim=2)
    squares = (unit @ unit.transpose(1, 2)).square()  # (slices, rank, rank)
    rank = rows.shape[1]
    own = squares.diagonal(dim1=1, dim2=2).sum(1)
    return (squares.sum((1, 2)) - own).mean() / (rank * (rank - 1))
