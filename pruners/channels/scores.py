"""How much each unit matters: magnitude, batch-norm scale, LAMP, FPGM, Taylor and Fisher scores.

theta are the entries of a unit's slices, m(.) the mean over its members: weights on both sides and norm scales, biases
left out. magnitude m(sum |theta|^2), l1 m(sum |theta|), bn m(|gamma|), lamp s(u) / sum of s(v) >= s(u) in the group
(Lee et al. 2021, per group), fpgm m(sum over v of distance(u, v)) over filters, norm scales left out (He et al. 2019),
taylor m(sum |theta * dL/dtheta|) (Molchanov et al. 2019, batch norms included), fisher m(sum theta^2 * h), h = mean
squared per-sample gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from profilers.modes import eval_mode
from pruners.channels.atoms import tensor_at
from pruners.channels.errors import BadChannelOptions
from pruners.channels.groups import Group, Groups, Member
from pruners.errors import BadWeights

ScoreName = Literal["magnitude", "l1", "bn", "lamp", "fpgm", "taylor", "fisher"]
Normaliser = Literal["mean", "max", "sum", "none"]
Scores = list[NDArray[np.float64]]
"""One vector per group, one value per unit."""

NEEDS_GRADIENTS = ("taylor", "fisher")
_NORM_NAMES = ("weight", "gamma", "scale")


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """Which score and how groups are made comparable.

    Attributes:
        normalise: divide each group by its mean, maximum or sum; None takes the score's own default.

    Raises:
        BadChannelOptions: an unknown name.
    """

    score: ScoreName = "magnitude"
    normalise: Normaliser | None = None

    def __post_init__(self) -> None:
        if self.score not in get_args(ScoreName):
            raise BadChannelOptions(f"there is no score {self.score!r}: choose among {', '.join(get_args(ScoreName))}")
        if self.normalise is not None and self.normalise not in get_args(Normaliser):
            known = ", ".join(get_args(Normaliser))
            raise BadChannelOptions(f"there is no normaliser {self.normalise!r}: choose among {known}")

    @property
    def normaliser(self) -> Normaliser:
        """The one in force: raw Taylor, Fisher and LAMP values are comparable as they are."""
        return self.normalise or ("none" if self.score in ("taylor", "fisher", "lamp") else "mean")


def score(
    model: nn.Module,
    groups: Groups,
    options: ScoreOptions | None = None,
    *,
    gradients: Mapping[str, Tensor] | None = None,
) -> Scores:
    """Score every unit of every group; higher is more important.

    Args:
        gradients: for `taylor` the mean gradient, for `fisher` the mean squared per-sample gradient of each parameter
            (`mean_gradients`, `mean_squared_gradients`).

    Raises:
        BadChannelOptions: gradients are needed and missing.
        BadWeights: the weights hold NaN or inf.
    """
    options = options or ScoreOptions()
    if options.score in NEEDS_GRADIENTS and gradients is None:
        raise BadChannelOptions(f"the {options.score} score needs gradients on labelled or teacher-labelled images")
    found = [_group_score(model, groups, group, options.score, gradients or {}) for group in groups.groups]
    for group, values in zip(groups.groups, found, strict=True):
        if not np.isfinite(values).all():
            raise BadWeights(group.name, "its weights hold NaN or inf")
    return [_normalised(values, options.normaliser) for values in found]


def _normalised(values: NDArray[np.float64], how: Normaliser) -> NDArray[np.float64]:
    if how == "none":
        return values
    base = float(values.mean() if how == "mean" else values.max() if how == "max" else values.sum())
    return values / base if base > 0 else values


def _group_score(
    model: nn.Module, groups: Groups, group: Group, name: str, gradients: Mapping[str, Tensor]
) -> NDArray[np.float64]:
    members = scored_members(groups, group)
    if name == "bn":
        norms = [m for m in members if len(groups.atoms.by_name[m.tensor].shape) == 1]
        members, power = (norms or members), (1 if norms else 2)
        return _mean(members, lambda m: _entries(model, m).abs() ** power)
    if name == "l1":
        return _mean(members, lambda m: _entries(model, m).abs())
    if name == "taylor":
        return _mean(members, lambda m: (_entries(model, m) * gradients[m.tensor].double()).abs())
    if name == "fisher":
        return _mean(members, lambda m: _entries(model, m) ** 2 * gradients[m.tensor].double())
    if name == "fpgm":
        filters = [m for m in members if len(groups.atoms.by_name[m.tensor].shape) > 1]
        return _spread_score(model, filters or members)
    values = _mean(members, lambda m: _entries(model, m) ** 2)
    return _lamp(values) if name == "lamp" else values


def scored_members(groups: Groups, group: Group) -> list[Member]:
    """Weights on both sides and norm scales; with neither, whatever parameters there are."""
    found: list[Member] = []
    others: list[Member] = []
    for member in group.members:
        slot = groups.atoms.by_name[member.tensor]
        if slot.kind != "parameter":
            continue
        own = member.tensor.rpartition(".")[2]
        wide = len(slot.shape) > 1 or any(text in own for text in _NORM_NAMES)
        (found if wide else others).append(member)
    return found or others


def _entries(model: nn.Module, member: Member) -> Tensor:
    return tensor_at(model, member.tensor).detach().double().cpu()


def _per_unit(values: Tensor, member: Member) -> NDArray[np.float64]:
    """Sum the entries of each unit's slices."""
    rows = values.movedim(member.dim, 0).reshape(values.shape[member.dim], -1).sum(1).numpy()
    summed: NDArray[np.float64] = rows[member.index].sum(1)
    return summed


def _mean(members: Sequence[Member], values: Callable[[Member], Tensor]) -> NDArray[np.float64]:
    parts = [_per_unit(values(member), member) for member in members]
    mean: NDArray[np.float64] = np.mean(parts, axis=0)
    return mean


def _lamp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.argsort(-values, kind="stable")
    totals = np.cumsum(values[order])
    found = np.empty_like(values)
    found[order] = values[order] / np.maximum(totals, np.finfo(float).tiny)
    return found


def _spread_score(model: nn.Module, members: Sequence[Member]) -> NDArray[np.float64]:
    parts = []
    for member in members:
        whole = _entries(model, member).movedim(member.dim, 0)
        whole = whole.reshape(whole.shape[0], -1)
        slices = whole[torch.from_numpy(member.index)].flatten(1)  # (units, positions * others)
        parts.append(torch.cdist(slices, slices).sum(1).numpy())
    mean: NDArray[np.float64] = np.mean(parts, axis=0)
    return mean


Loss = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> mean loss of the batch."""


def mean_gradients(model: nn.Module, batches: Iterable[Any], loss: Loss) -> dict[str, Tensor]:
    """The gradient of the mean loss over all batches, every parameter in eval mode; the model is left as it was."""
    return _accumulated(model, batches, loss, lambda gradient: gradient)


def mean_squared_gradients(model: nn.Module, samples: Iterable[Any], loss: Loss) -> dict[str, Tensor]:
    """The mean over samples of the squared gradient; every element of `samples` is a batch of one."""
    return _accumulated(model, samples, loss, torch.square)


def _accumulated(
    model: nn.Module, batches: Iterable[Any], loss: Loss, of: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    sums: dict[str, Tensor] = {}
    count = 0
    named = dict(model.named_parameters())
    try:
        for parameter in named.values():
            parameter.requires_grad_(True)
        with eval_mode(model), torch.enable_grad():
            for batch in batches:
                value = loss(model, batch)
                found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
                for (name, parameter), gradient in zip(named.items(), found, strict=True):
                    part = torch.zeros_like(parameter) if gradient is None else of(gradient.detach())
                    sums[name] = sums[name] + part if name in sums else part.clone()
                count += 1
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
    if not count:
        raise BadChannelOptions("there are no images to take gradients on")
    return {name: total.cpu() / count for name, total in sums.items()}
