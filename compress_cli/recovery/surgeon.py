"""Which weights of a layer to remove when the others make up for it: the optimal brain surgeon on a Gram matrix.

The price of a weight is w^2 / [G_S^-1] on its output's support S (Hassibi and Stork 1993), times how much the network's
outputs feel that output channel. Prices hold for one removal at a time, so the layer goes down in several steps; after
each, the weights that are left are solved again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress_cli.recovery.normal import NormalEquations, solve_and_price

STEPS = 6
RIDGE = 1e-3
"""Relative to the diagonal of the Gram matrix."""


def choose_support(
    equations: NormalEquations,
    weights: Tensor,
    support: Tensor,
    zeros: int,
    feeling: Tensor | None = None,
    *,
    fixed: int = 0,
    steps: int = STEPS,
) -> Tensor:
    """Return the support of a layer that has so many zeros.

    Args:
        equations: of the rows to fit, for `weights`.
        weights: (groups, columns, outputs).
        support: where they may be other than zero now.
        zeros: how many places outside the support there are at the end.
        feeling: (groups, outputs), weight of each output's error; None for the same.
        fixed: the last columns, such as a constant, which help to make up for others and always stay.
        steps: in how many steps the layer goes down.

    Returns:
        (groups, columns, outputs), a part of `support`, where exactly `zeros` places are False (more if they were).
    """
    places = support.shape[1] - fixed
    removable = torch.zeros_like(support)
    removable[:, :places] = support[:, :places]
    start, end = int(removable.sum()), removable.numel() // support.shape[1] * places - zeros
    found = support.clone()
    for step in range(1, steps + 1):
        now = int((found & removable).sum())
        if now <= end or not end:
            break
        left = end if step == steps else round(start * (end / start) ** (step / steps))
        gone = torch.where(found, 0.0, -weights)
        _, prices = solve_and_price(equations.shifted(gone), weights + gone, found, RIDGE)
        if feeling is not None:
            prices = prices * feeling.unsqueeze(1)
        order = torch.where(found & removable, prices, torch.inf).flatten().argsort(stable=True)
        found.view(-1)[order[: now - left]] = False
    return found if end else found & ~removable
