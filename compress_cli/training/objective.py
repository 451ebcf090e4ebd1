"""What a training step minimises: the tasks' losses, and the distance to the original's outputs when distilling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compress_cli.data import Batch
from compress_cli.tasks import CrossEntropy, Task, mean_present
from compress_cli.training.distill import teacher_loss
from compress_cli.training.recipe import Recipe
from exporters.outputs import flatten_outputs


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a batch; `teacher` is in eval mode on the training device, or None."""

    tasks: tuple[Task, ...]
    recipe: Recipe
    teacher: nn.Module | None

    @classmethod
    def of(cls, tasks: Sequence[Task], recipe: Recipe, teacher: nn.Module | None) -> Objective:
        """The objective of a recipe; label smoothing applies to the built-in cross entropy."""
        chosen = tuple(_smoothed(task, recipe.label_smoothing) for task in tasks)
        return cls(chosen, recipe, teacher if recipe.distill > 0 else None)

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """Scalar loss of one batch with a graph: the weighted sum over the tasks.

        Raises:
            TaskMismatch: outputs and targets do not fit.
        """
        named = flatten_outputs(outputs)
        theirs = self._teacher_outputs(batch)
        share = self.recipe.distill if theirs is not None else 0.0
        total: Tensor | None = None
        for task in self.tasks:
            loss = (1 - share) * mean_present(task.losses(named, batch.target))
            if theirs is not None:
                distance = teacher_loss(
                    task, task.select_output(named), task.select_output(theirs), self.recipe.temperature
                )
                loss = loss + share * distance
            total = task.weight * loss if total is None else total + task.weight * loss
        assert total is not None
        return total

    @torch.no_grad()
    def _teacher_outputs(self, batch: Batch) -> dict[str, Tensor] | None:
        return None if self.teacher is None else flatten_outputs(self.teacher(*batch.inputs))


def _smoothed(task: Task, amount: float) -> Task:
    if amount and isinstance(task.loss, CrossEntropy):
        return replace(task, loss=replace(task.loss, label_smoothing=amount))
    return task
