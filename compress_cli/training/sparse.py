"""What training does to keep a network sparse: nothing, a frozen mask, or a mask that grows along a schedule.

The trainer calls `before_forward_`, `after_backward_` and `after_step_` in every step. Between steps the parameters are
what the optimiser trains; inside `deployed` they are what a user of the network gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from compress_cli.translate import pruning_errors

if TYPE_CHECKING:
    from pruners.magnitude_plan import MagnitudePlan
    from pruners.masks import Masks
    from pruners.schedules import Schedule


class Constraint(Protocol):
    """What must hold after every step; `pruners.masks.Masks` is one."""

    def constrain_(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Enforce it on the weights, and on the optimiser's state."""

    def mask_gradients_(self) -> None:
        """Enforce it on the gradients."""


class Dense:
    """No constraint at all; the base of the others."""

    kind = "dense"

    def before_forward_(self, step: int) -> None:
        """Parameters become what the forward pass uses."""

    def after_backward_(self) -> None:
        """Parameters become what the optimiser changes; gradients are masked."""

    def after_step_(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Enforce the constraint; `step` has just been made, counted from 0."""

    @contextmanager
    def deployed(self) -> Iterator[None]:
        """Parameters are the network's final form inside, for evaluation."""
        yield

    def finish_(self) -> None:
        """Make the deployed form permanent."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold besides weights and optimiser; tensors and plain values only."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take a checkpoint's state over."""

    def describe(self) -> dict[str, Any]:
        """JSON-able words for the report."""
        return {"mode": self.kind}


class Frozen(Dense):
    """A constraint that does not change: zeros stay zero."""

    kind = "frozen mask"

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint

    def after_backward_(self) -> None:
        """See `Dense`."""
        self._constraint.mask_gradients_()

    def after_step_(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """See `Dense`."""
        self._constraint.constrain_(optimizer)

    def finish_(self) -> None:
        """See `Dense`."""
        self._constraint.constrain_()

    def state_dict(self) -> dict[str, Any]:
        """See `Dense`."""
        save = getattr(self._constraint, "state_dict", None)
        return {"masks": save()} if save is not None else {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """See `Dense`."""
        load = getattr(self._constraint, "load_state_dict", None)
        if load is not None and "masks" in saved:
            load(saved["masks"])


class Gradual(Frozen):
    """A mask that grows: the whole network is ranked anew whenever the schedule says so."""

    kind = "gradual"

    def __init__(self, masks: Masks, schedule: Schedule, plan: MagnitudePlan) -> None:
        super().__init__(masks)
        self._masks = masks
        self._schedule = schedule
        self._plan = plan

    def after_step_(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """See `Dense`; the schedule counts the steps that were made."""
        made = step + 1
        if not self._schedule.is_due(made):
            self._masks.constrain_(optimizer)
            return
        last = made >= self._schedule.end
        wanted = self._plan.sparsity if last else repr(self._schedule.sparsity_at(made))
        with pruning_errors():
            self._masks.reselect_(self._plan.options_at(wanted), optimizer)

    def describe(self) -> dict[str, Any]:
        """See `Dense`."""
        return {"mode": self.kind, **self._schedule.to_dict()}
