"""`compress finetune`: nothing is removed; the zeros that a network already has stay, its weights train on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_cli.errors import InputError, UsageError, VerificationError
from compress_cli.methods.magnitude import Magnitude, _candidates, _chosen
from compress_cli.report import Achieved
from compress_cli.translate import pruning_errors
from pruners import magnitude

if TYPE_CHECKING:
    from torch import nn

    from compress_cli.checkpoint import LoadedModel
    from compress_cli.config import RunConfig
    from compress_cli.methods.base import BUG, Measured
    from compress_cli.quality import Quality
    from compress_cli.session import Session


class Finetune(Magnitude):
    """The plan is the magnitude plan that cuts exactly the zeros that are there: none more, and none is revived."""

    needs_module = True

    def check(self, config: RunConfig) -> None:
        """There must be something to train on."""
        if not (config.data or config.task):
            raise UsageError("finetune needs training data", "pass --data DIR or --task FILE")
        if config.epochs == 0:
            raise UsageError("--epochs 0 trains nothing", "pass --epochs 1 or more")
        if config.teacher is not None and not Path(config.teacher).is_file():
            raise InputError(f"--teacher {config.teacher} does not exist", "check the path")
        if config.schedule != "one-shot":
            raise UsageError(
                f"--schedule {config.schedule} prunes, finetune does not",
                f"use compress prune --schedule {config.schedule}",
            )

    def plan(self, session: Session, loaded: LoadedModel, quality: Quality | None) -> magnitude.MagnitudePlan:
        """The zeros as they are."""
        ranked = _candidates(loaded)
        with pruning_errors():
            present = magnitude.plan(ranked, magnitude.MagnitudeOptions("0", floor="0"))
            share = present.zeros_before / present.weights
            return magnitude.plan(ranked, magnitude.MagnitudeOptions(repr(share), floor="0"))

    def apply_(self, loaded: LoadedModel, plan: Any) -> None:
        """Nothing to do."""

    def settle(self, session: Session, loaded: LoadedModel, plan: magnitude.MagnitudePlan) -> magnitude.MagnitudePlan:
        """The same plan."""
        return plan

    def constraint(self, module: nn.Module, plan: magnitude.MagnitudePlan) -> Any:
        """The zeros as masks; None for a dense network."""
        return super().constraint(module, plan) if plan.zeros_before else None

    def achieved(self, config: RunConfig, plan: magnitude.MagnitudePlan, measured: Measured) -> tuple[Achieved, ...]:
        """The zeros before and after, counted in the files.

        Raises:
            VerificationError: a zero was revived.
        """
        if not plan.zeros_before:
            return ()
        found = sum(magnitude.count_zeros(_chosen(plan, measured.after)).values())
        if found < plan.zeros_before:
            raise VerificationError(
                f"the written model holds {found:,} zeros, {plan.zeros_before:,} were there before training",
                BUG,
            )
        return (Achieved("sparsity", "as before", plan.zeros_before, found, plan.weights),)
