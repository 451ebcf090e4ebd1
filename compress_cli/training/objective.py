"""What a training step minimises: the tasks' losses, and the distance to the original's outputs when distilling."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress_cli.data import Batch
from compress_cli.tasks import CrossEntropy, Task, mean_present
from compress_cli.training.distill import teacher_loss
from compress_cli.training.features import FeaturePoints
from compress_cli.training.mixing import mixed
from compress_cli.training.orthogonal import Encoders
from compress_cli.training.recipe import Recipe
from exporters.outputs import flatten_outputs


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a batch; `teacher` is in eval mode on the training device, or None."""

    tasks: tuple[Task, ...]
    recipe: Recipe
    teacher: nn.Module | None
    points: FeaturePoints | None = None
    encoders: Encoders | None = None

    @classmethod
    def of(
        cls,
        tasks: Sequence[Task],
        recipe: Recipe,
        teacher: nn.Module | None,
        points: FeaturePoints | None = None,
        encoders: Encoders | None = None,
    ) -> Objective:
        """The objective of a recipe; label smoothing applies to the built-in cross entropy."""
        chosen = tuple(_smoothed(task, recipe.label_smoothing) for task in tasks)
        return cls(chosen, recipe, teacher, points, encoders)

    def watched(self) -> AbstractContextManager[None]:
        """Around the training: what the loss needs to see inside the networks."""
        return nullcontext() if self.points is None else self.points.watched()

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """Scalar loss of one batch with a graph: the weighted sum over the tasks, blended where images are blended.

        Raises:
            TaskMismatch: outputs and targets do not fit.
        """
        run, other, share = mixed(batch, self.recipe)
        outputs = flatten_outputs(network(*run.inputs))
        theirs = self._teacher_outputs(run)
        loss = self._loss(outputs, theirs, run)
        if other is not None:
            loss = share * loss + (1 - share) * self._loss(outputs, theirs, other)
        if self.points is not None:
            loss = loss + self.recipe.features * self.points.distance()
        if self.encoders is not None:
            loss = loss + self.recipe.orthogonal * self.encoders.penalty()
        return loss

    def _loss(self, named: dict[str, Tensor], theirs: dict[str, Tensor] | None, batch: Batch) -> Tensor:
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
