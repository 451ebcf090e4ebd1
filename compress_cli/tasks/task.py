"""`Task`: one output, one target, a loss per sample and a metric. An ordinary classifier is a tuple of one task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress_cli.errors import InputError
from compress_cli.tasks.losses import CrossEntropy, loss_named
from compress_cli.tasks.metrics import Metric, TopK, metric_named
from exporters.errors import ExportFailed
from exporters.outputs import flatten_outputs

Loss = Callable[[Any, Any], Tensor]
"""(output, target) -> (batch,) losses; NaN where a sample has no target for the task."""


class TaskMismatch(InputError):
    """A task does not fit the model's outputs or the data's targets."""


@dataclass(frozen=True, slots=True)
class Task:
    """One thing the network is asked to do.

    Attributes:
        output: name or index among `flatten_outputs(model(*inputs))`; None for the first.
        target: key or index of the data set's target; None for the whole of it.
        loss: (output, target) -> (batch,) losses, NaN where a sample has no target; or the name of a built-in one.
        metric: what is reported; or the name of a built-in one.
        max_drop: how far the metric may fall, in its own unit; None for no limit.
        weight: share in the training loss.
    """

    name: str
    output: str | int | None = None
    target: str | int | None = None
    loss: Loss | str = "cross_entropy"
    metric: Metric | str = "top1"
    max_drop: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.loss, str):
            object.__setattr__(self, "loss", loss_named(self.loss))
        if isinstance(self.metric, str):
            object.__setattr__(self, "metric", metric_named(self.metric))

    def select_output(self, outputs: Any) -> Tensor:
        """The tensor of a model's outputs that this task looks at.

        Raises:
            TaskMismatch: the model has no such output.
        """
        try:
            named: Mapping[str, Tensor] = outputs if _is_flat(outputs) else flatten_outputs(outputs)
        except ExportFailed as error:
            raise TaskMismatch(f"task {self.name}: {error}", "let the model return tensors") from error
        if self.output is None:
            return next(iter(named.values()))
        if isinstance(self.output, int) and -len(named) <= self.output < len(named):
            return list(named.values())[self.output]
        if self.output in named:
            return named[str(self.output)]
        raise TaskMismatch(
            f"task {self.name}: the model has no output {self.output!r}",
            f"its outputs are {', '.join(named)}: correct `output` in the task file",
        )

    @property
    def measure(self) -> Metric:
        """`metric`, whose name was resolved when the task was made."""
        assert not isinstance(self.metric, str)
        return self.metric

    def select_target(self, target: Any) -> Any:
        """The part of a batch's target that this task is compared with.

        Raises:
            TaskMismatch: there is no such target.
        """
        if self.target is None:
            return target
        if isinstance(target, Mapping) and self.target in target:
            return target[self.target]
        if isinstance(target, Sequence) and isinstance(self.target, int) and -len(target) <= self.target < len(target):
            return target[self.target]
        known = ", ".join(map(str, target)) if isinstance(target, Mapping) else type(target).__name__
        raise TaskMismatch(
            f"task {self.name}: the data has no target {self.target!r} (there is: {known})",
            "correct `target` in the task file, or let the data set return a dict with that key",
        )

    def losses(self, outputs: Any, target: Any) -> Tensor:
        """(batch,) losses of a batch; NaN where a sample has no target.

        Raises:
            TaskMismatch: output and target do not fit, or the loss is not one number per sample.
            InputError: the GPU's memory is full.
        """
        output, wanted = self.select_output(outputs), self.select_target(target)
        try:
            losses = self.loss(output, wanted)  # type: ignore[operator]
        except torch.OutOfMemoryError as error:
            raise _memory_full(self.name) from error
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise TaskMismatch(
                f"task {self.name}: the loss cannot compare output {_shape(output)} with target {_shape(wanted)}: "
                f"{str(error).splitlines()[0]}",
                "check `output`, `target` and `loss` of the task, and the number of classes",
            ) from error
        if losses.shape != (output.shape[0],):
            raise TaskMismatch(
                f"task {self.name}: the loss has shape {tuple(losses.shape)} for a batch of {output.shape[0]}",
                "return one number per sample: reduction='none', then the mean over everything but the batch",
            )
        return losses

    def count(self, outputs: Any, target: Any) -> Tensor:
        """Additive counts of the metric over a batch, float64.

        Raises:
            TaskMismatch: output and target do not fit.
            InputError: the GPU's memory is full.
        """
        output, wanted = self.select_output(outputs), self.select_target(target)
        try:
            return self.measure.count(output, wanted)
        except torch.OutOfMemoryError as error:
            raise _memory_full(self.name) from error
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise TaskMismatch(
                f"task {self.name}: the metric cannot compare output {_shape(output)} with target {_shape(wanted)}: "
                f"{str(error).splitlines()[0]}",
                "check `output`, `target` and `metric` of the task",
            ) from error


def mean_present(losses: Tensor) -> Tensor:
    """Mean of the losses of the samples that have a target (not NaN); 0 when none has and NaN when all diverged.

    A batch without any target gives a zero that still carries a gradient of zero.
    """
    present = ~torch.isnan(losses)
    return torch.where(present, losses, torch.zeros_like(losses)).sum() / present.sum().clamp(min=1)


def classification(classes: int | None = None, *, loss: Loss | None = None) -> tuple[Task, ...]:
    """The tasks of an image classifier: cross entropy on the first output and top-1 accuracy."""
    return (Task("top1", None, None, loss or CrossEntropy(), TopK(1, classes)),)


def _memory_full(task: str) -> InputError:
    return InputError(f"task {task}: the GPU's memory is not enough for a batch", "pass a smaller --batch-size")


def _is_flat(outputs: Any) -> bool:
    return isinstance(outputs, dict) and all(isinstance(value, Tensor) for value in outputs.values())


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
