"""`--score recovery` of magnitude pruning: the weights go whose removal costs least after the others made up for it.

How many a layer loses comes from error curves of the whole network (scope global) or is the same share everywhere
(scope layer); which ones is decided layer by layer on what the already pruned layers hand on. The plan holds the zeros
themselves; the weights are solved afterwards, by the recovery step that every run with --calib has.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from compress_cli.config import RECOVERY_SCORE
from pruners import magnitude

if TYPE_CHECKING:
    from torch import Tensor, nn

Step = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, eq=False)
class PricedPlan:
    """Which weights become zero.

    Attributes:
        counted: the plan with the counts of every tensor; its thresholds mean nothing.
        zeros: tensor -> True where it becomes zero.
    """

    counted: magnitude.MagnitudePlan
    zeros: Mapping[str, Tensor] = field(repr=False)

    @property
    def cuts(self) -> tuple[magnitude.Cut, ...]:
        """Counts of each tensor."""
        return self.counted.cuts

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the ranked tensors, in order."""
        return self.counted.names

    @property
    def weights(self) -> int:
        """How many weights were ranked."""
        return self.counted.weights

    @property
    def zeros_before(self) -> int:
        """Zeros among them before."""
        return self.counted.zeros_before

    @property
    def left_out(self) -> tuple[magnitude.Skipped, ...]:
        """Tensors that were not ranked."""
        return self.counted.left_out

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know."""
        return self.counted.warnings

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: counts, no positions (the zeros in the file are the positions)."""
        document = {**self.counted.to_dict(), "score": RECOVERY_SCORE, "threshold": None}
        for cut in document["cuts"]:
            for name in ("threshold", "ties", "ties_taken"):
                del cut[name]
        return document

    def explain(self) -> str:
        """The counts, one line per tensor."""
        plan = self.counted
        lines = [
            f"{plan.weights:,} weights in {len(plan.cuts)} tensors ranked by what their removal costs after recovery"
            f" ({plan.scope}); sparsity asked {plan.sparsity}",
            f"zeros: {plan.zeros_before:,} before, {plan.zeros_asked:,} asked, {plan.zeros_after:,} after"
            f" ({plan.zeros_after / plan.weights:.4%}); floor {plan.floor_count:,} per tensor",
        ]
        for cut in plan.cuts:
            left = f"{cut.numel - cut.zeros_before:,} -> {cut.numel - cut.zeros_after:,} non-zero"
            lines.append(f"{cut.name}: {left}, density {cut.density:.2%}")
        lines += [f"left out {item.name}: {item.reason}" for item in plan.left_out]
        return "\n".join([*lines, *(f"warning: {text}" for text in plan.warnings)])


def plan(
    module: nn.Module,
    options: magnitude.MagnitudeOptions,
    batches: Sequence[Sequence[Tensor]],
    *,
    seed: int,
    on_step: Step | None = None,
) -> PricedPlan:
    """Choose on a copy of the network.

    Args:
        module: not changed.
        options: sparsity, scope, floor and patterns; weights that no traced layer multiplies by are chosen by size.
        batches: unlabelled images, as positional arguments.
        seed: of the images' order.
        on_step: called with (steps done, steps in all, what comes next).

    Raises:
        RecoveryError: see `compress_cli.recovery.recover`.
        PruningError: see `pruners.magnitude.plan`.
    """
    from compress_cli.recovery import recover
    from compress_cli.recovery.weight_prices import error_curves, share_zeros, solvable

    base = magnitude.plan(magnitude.candidates_in_module(module), options)
    known = set(solvable(module, batches))
    priced = {cut.name: cut.zeros_after for cut in base.cuts if cut.name in known}
    if options.scope == "global":
        curves = error_curves(module, batches, list(priced), seed=seed, on_step=on_step)
        priced = share_zeros(curves, sum(priced.values()), base.floor_count)
    small = copy.deepcopy(module)
    tensors = dict(small.named_parameters(remove_duplicate=False))
    whole = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    magnitude.apply_(small, base)
    with torch.no_grad():
        for name in priced:
            tensors[name].copy_(whole[name])
    recover(module, small, batches, seed=seed, on_step=on_step, zeros=priced)
    zeros = {name: tensors[name].detach() == 0 for name in base.names}
    cuts = tuple(dataclasses.replace(cut, zeros_after=int(zeros[cut.name].sum())) for cut in base.cuts)
    return PricedPlan(dataclasses.replace(base, threshold=None, cuts=cuts), zeros)


@torch.no_grad()
def apply_(module: nn.Module, chosen: PricedPlan) -> None:
    """Write the zeros.

    Raises:
        PlanMismatch: names, shapes or element types are not those of the plan; nothing was changed.
    """
    tensors = dict(module.named_parameters(remove_duplicate=False))
    chosen.counted.applies_to(tensors)
    for name, gone in chosen.zeros.items():
        tensors[name].masked_fill_(gone.to(tensors[name].device), 0.0)
