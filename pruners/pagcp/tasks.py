"""What the search may ask: samples, how the model runs on them, and one loss per sample and task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from profilers.modes import eval_mode

Losses = dict[str, Tensor]
"""Task -> (samples,) losses in float64, NaN where a sample has no target for the task."""


LEAST_HELD_OUT = 64
"""Samples with a target; the mean loss of fewer says little about a rise of a few percent."""


@dataclass(frozen=True, slots=True)
class TaskData:
    """Calibration samples held in memory, and the tasks that judge the outputs on them.

    Attributes:
        batches: whatever `forward` takes, one item a batch.
        forward: (model, batch) -> outputs.
        losses: (outputs, batch) -> task -> (batch,) losses, NaN where there is no target; differentiable for Fisher.
        probes: like `losses`, differentiated instead of them for Fisher scores; needed where the losses are 0 at the
            original (teacher matching), as all their gradients vanish there. With random signs v, <v, outputs> gives
            the Gauss-Newton form: the expected square of its derivative is |d outputs / d gate|^2.
        floors: task -> eps added to both losses of a relative rise; without it a loss near 0 rejects everything.
        held_out: batches that the search does not see, for the final check; empty: it sees the search's.
    """

    batches: Sequence[Any]
    forward: Callable[[nn.Module, Any], Any]
    losses: Callable[[Any, Any], Mapping[str, Tensor]]
    floors: Mapping[str, float] = field(default_factory=dict)
    probes: Callable[[Any, Any], Mapping[str, Tensor]] | None = None
    held_out: Sequence[Any] = ()

    def for_check(self, model: nn.Module) -> tuple[TaskData, Losses]:
        """What the final check judges by, and the model's losses there: held out, if every task has targets enough."""
        if self.held_out:
            judged = replace(self, batches=self.held_out, held_out=())
            before = evaluate(judged, model)
            if fewest_targets(before) >= LEAST_HELD_OUT:
                return judged, before
        return self, evaluate(self, model)


def of_batch(data: TaskData, model: nn.Module, batch: Any) -> Losses:
    """Losses of one batch, without gradients."""
    with torch.no_grad():
        found = data.losses(data.forward(model, batch), batch)
        return {task: values.detach().double().cpu() for task, values in found.items()}


def joined(parts: Sequence[Losses]) -> Losses:
    """Losses of several batches as one vector per task, in the batches' order."""
    return {task: torch.cat([part[task] for part in parts]) for task in parts[0]} if parts else {}


def fewest_targets(losses: Losses) -> int:
    """How many samples have a target for the task that has fewest."""
    return min((int((~values.isnan()).sum()) for values in losses.values()), default=0)


def mean(values: Tensor) -> float:
    """Mean over the samples that have a target; 0 when none has. Infinity for diverged outputs."""
    known = values[~torch.isnan(values)]
    return float(known.mean()) if known.numel() else 0.0


def rises(losses: Losses, reference: Losses, floors: Mapping[str, float]) -> dict[str, float]:
    """Relative rise of every task's mean loss, (L + eps) / (L_ref + eps) - 1: 0.03 is 3 % more.

    A reference of 0 without a floor gives 0 for an unchanged loss and infinity for any other.
    """
    return {task: rise(mean(losses[task]), mean(reference[task]), floors.get(task, 0.0)) for task in reference}


def rise(loss: float, reference: float, floor: float) -> float:
    """One relative rise; see `rises`."""
    if loss == reference:
        return 0.0
    if reference + floor <= 0:
        return float("inf")
    found = (loss + floor) / (reference + floor) - 1
    return found if found == found else float("inf")


def evaluate(data: TaskData, model: nn.Module) -> Losses:
    """All samples' losses of a model as it is, in eval mode; its modes are put back."""
    with eval_mode(model):
        return joined([of_batch(data, model, batch) for batch in data.batches])


def constant_floors(data: TaskData, model: nn.Module, share: float = 0.05) -> dict[str, float]:
    """Floors eps_t: a share of the loss of a constant predictor, the model's mean output over all samples.

    Outputs must be nested dicts, lists or tuples of tensors with the batch first.
    """
    from torch.utils import _pytree as pytree

    with eval_mode(model), torch.no_grad():
        sums: list[Tensor] = []
        count, spec = 0, None
        for batch in data.batches:
            leaves, spec = pytree.tree_flatten(data.forward(model, batch))
            parts = [leaf.double().sum(0, keepdim=True) for leaf in leaves]
            sums = parts if not sums else [a + b for a, b in zip(sums, parts, strict=True)]
            count += len(leaves[0])
        if spec is None:
            return {}
        found = []
        for batch in data.batches:
            leaves, _ = pytree.tree_flatten(data.forward(model, batch))
            constant = [(s / count).to(leaf.dtype).expand_as(leaf) for s, leaf in zip(sums, leaves, strict=True)]
            losses = data.losses(pytree.tree_unflatten(constant, spec), batch)
            found.append({task: values.double().cpu() for task, values in losses.items()})
    return {task: share * max(mean(values), 0.0) for task, values in joined(found).items()}
