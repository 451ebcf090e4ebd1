"""A plain choice of units for tests: mean squared slices over the group mean, ranked globally."""

from __future__ import annotations

import numpy as np
from torch import nn

from pruners.channels import Groups
from pruners.channels.atoms import tensor_at


def pick(groups: Groups, model: nn.Module, share: float) -> dict[int, list[int]]:
    """The lowest `share` of all units; a tenth of each group, at least one unit, stays."""
    units: list[tuple[float, int, int]] = []
    for place, group in enumerate(groups.groups):
        score, parts = np.zeros(group.units), 0
        for member in group.members:
            if groups.atoms.by_name[member.tensor].kind == "parameter":
                tensor = tensor_at(model, member.tensor).detach().double()
                rows = (tensor**2).movedim(member.dim, 0).reshape(tensor.shape[member.dim], -1).sum(1).numpy()
                score, parts = score + rows[member.index].mean(1), parts + 1
        score = score / parts
        units += [(float(value), place, unit) for unit, value in enumerate(score / score.mean())]
    removed: dict[int, list[int]] = {}
    wanted = int(len(units) * share)
    for _, place, unit in sorted(units):
        size = groups.groups[place].units
        if wanted and len(removed.get(place, ())) < size - max(1, size // 10):
            removed.setdefault(place, []).append(unit)
            wanted -= 1
    return removed
