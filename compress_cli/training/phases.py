"""AC/DC: alternate phases in which the network is sparse and phases in which all of its weights train.

Peste, Iofinova, Vladu, Alistarh, "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks", NeurIPS
2021, arXiv 2106.12379. At the begin of a sparse phase the smallest weights of the whole network are zeroed and held;
at its end they are released, starting from zero and without momentum. The last phase is sparse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compress_cli.training.sparse import Dense
from compress_cli.translate import pruning_errors
from pruners.candidates import Candidate, Candidates
from pruners.magnitude import apply_
from pruners.magnitude import plan as plan_magnitude
from pruners.masks import Masks

if TYPE_CHECKING:
    from pruners.magnitude_plan import MagnitudePlan

WARM_UP, PHASE, LAST_DENSE, LAST_SPARSE = 0.10, 0.05, 0.75, 0.85
"""Shares of all steps: first dense phase, length of a phase, begin of the last dense and of the last sparse one.

Ours, in the manner of the paper's 100 epochs on ImageNet.
"""


def phase_bounds(steps: int) -> list[tuple[int, bool]]:
    """(first step, sparse?) of each phase, in order; starts dense and ends sparse.

    Example: 100 steps give dense from 0, sparse from 10, dense from 15, ..., dense from 75, sparse from 85.
    """
    bounds = [(0, False)]
    share, sparse = WARM_UP, True
    while share < LAST_DENSE - 1e-9:
        bounds.append((int(share * steps + 1e-9), sparse))
        share, sparse = share + PHASE, not sparse
    if not bounds[-1][1]:
        bounds.pop()  # the last dense phase begins right after a sparse one
    bounds += [(int(LAST_DENSE * steps), False), (int(LAST_SPARSE * steps), True)]
    distinct: list[tuple[int, bool]] = []
    for begin, kind in bounds:  # a short run has phases of no steps: the later one counts
        while distinct and distinct[-1][0] >= begin:
            distinct.pop()
        if not distinct or distinct[-1][1] is not kind:
            distinct.append((begin, kind))
    return distinct


class Phases(Dense):
    """AC/DC over the tensors of a magnitude plan."""

    kind = "AC/DC"

    def __init__(self, module: nn.Module, plan: MagnitudePlan, steps: int) -> None:
        self._module = module
        self._plan = plan
        self._changes = dict(phase_bounds(steps))
        self._masks: Masks | None = None

    def before_forward_(self, step: int) -> None:
        """Change the phase where one begins."""
        if step in self._changes:
            self._masks = self._select() if self._changes[step] else None

    def after_backward_(self) -> None:
        """Masked gradients in a sparse phase."""
        if self._masks is not None:
            self._masks.mask_gradients_()

    def after_step_(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Zeros, and momentum there, in a sparse phase."""
        if self._masks is not None:
            self._masks.constrain_(optimizer)

    def finish_(self) -> None:
        """The last phase is sparse; averaged weights are masked with it."""
        if self._masks is None:
            self._masks = self._select()
        self._masks.constrain_()

    def state_dict(self) -> dict[str, Any]:
        """The mask of the phase."""
        return {"masks": None if self._masks is None else self._masks.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """See `Dense`."""
        self._masks = None
        if saved["masks"] is not None:
            self._masks = Masks(self._module, self._plan.names)
            self._masks.load_state_dict(saved["masks"])

    def describe(self) -> dict[str, Any]:
        """See `Dense`."""
        begins = [{"step": step, "sparse": sparse} for step, sparse in self._changes.items()]
        return {"mode": self.kind, "phases": begins}

    def _select(self) -> Masks:
        named = dict(self._module.named_parameters(remove_duplicate=False))
        weights = {name: named[name] for name in self._plan.names}
        ranked = Candidates(tuple(Candidate(name, weight) for name, weight in weights.items()), ())
        with pruning_errors():
            apply_(weights, plan_magnitude(ranked, self._plan.options_at(self._plan.sparsity)))
        return Masks(self._module, self._plan.names)
