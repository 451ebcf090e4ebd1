"""Built-in metrics as additive counts: batches, processes and resumed runs add up exactly, in any order.

`count` returns a float64 vector whose sum over batches is all that `value` needs; integer counts are exact to 2^53.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from compress_cli.errors import UsageError
from compress_cli.tasks.losses import IGNORED, aligned


class Metric(Protocol):
    """A number over a whole set, from counts that add up over batches."""

    @property
    def name(self) -> str:
        """Short name, such as `top1`."""

    @property
    def unit(self) -> str:
        """Unit of the value, such as `%`; empty for none."""

    @property
    def higher_is_better(self) -> bool:
        """Direction."""

    def count(self, output: Tensor, target: Any) -> Tensor:
        """1-D float64 counts of one batch."""

    def value(self, counts: Tensor) -> float:
        """The metric from the summed counts; NaN when nothing was counted."""


@dataclass(frozen=True, slots=True)
class TopK:
    """Share of samples whose class is among the k largest outputs, in percent; ties count as the lower index.

    `classes`: how many classes the data has; an output of another width is refused where it is known.
    """

    k: int = 1
    classes: int | None = None
    unit = "%"
    higher_is_better = True

    @property
    def name(self) -> str:
        """`top1`, `top5`."""
        return f"top{self.k}"

    def count(self, output: Tensor, target: Any) -> Tensor:
        """(right, counted) of (batch, classes) outputs and (batch,) class indices."""
        known = target != IGNORED
        best = output.argmax(1, keepdim=True) if self.k == 1 else output.topk(min(self.k, output.shape[1]), 1).indices
        right = (best == target.view(-1, 1)).any(1) & known
        return torch.stack([right.sum(), known.sum()]).double()

    def value(self, counts: Tensor) -> float:
        """Percent."""
        return _ratio(100 * counts[0], counts[1])


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of right positions of (batch, classes, ...) outputs against (batch, ...) indices, in percent.

    An output without a class dimension, such as (batch,) or (batch, 1) logits, is right when its sign is.
    """

    ignore_index: int = IGNORED
    name = "accuracy"
    unit = "%"
    higher_is_better = True

    def count(self, output: Tensor, target: Any) -> Tensor:
        """(right, counted) over all positions."""
        if output.dim() == target.dim() + 1 and output.shape[1] > 1:
            known = target != self.ignore_index
            right = (output.argmax(1) == target) & known
        else:
            output, target = aligned(output, target)
            known = ~torch.isnan(target)
            right = ((output > 0) == (target > 0.5)) & known
        return torch.stack([right.sum(), known.sum()]).double()

    def value(self, counts: Tensor) -> float:
        """Percent."""
        return _ratio(100 * counts[0], counts[1])


@dataclass(frozen=True, slots=True)
class MeanIoU:
    """Mean over the classes of intersection / union of (batch, classes, ...) outputs, in percent.

    Classes that neither prediction nor target ever names are left out of the mean.
    """

    ignore_index: int = IGNORED
    name = "miou"
    unit = "%"
    higher_is_better = True

    def count(self, output: Tensor, target: Any) -> Tensor:
        """The confusion matrix (target, prediction), flattened."""
        classes = output.shape[1]
        known = target != self.ignore_index
        pairs = target[known].long() * classes + output.argmax(1)[known]
        return torch.bincount(pairs, minlength=classes * classes).double()

    def value(self, counts: Tensor) -> float:
        """Percent."""
        classes = round(counts.numel() ** 0.5)
        matrix = counts.view(classes, classes)
        both, either = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        present = either > 0
        return float(100 * (both[present] / either[present]).mean()) if bool(present.any()) else float("nan")


@dataclass(frozen=True, slots=True)
class MeanError:
    """Mean absolute (`power` 1) or root mean squared (`power` 2) error over all elements with a target."""

    power: int = 1
    unit = ""
    higher_is_better = False

    @property
    def name(self) -> str:
        """`mae` or `rmse`."""
        return "mae" if self.power == 1 else "rmse"

    def count(self, output: Tensor, target: Any) -> Tensor:
        """(sum of errors to the power, counted)."""
        output, target = aligned(output, target)
        known = ~torch.isnan(target)
        errors = (output - target)[known].double().abs() ** self.power
        return torch.stack([errors.sum(), known.sum().double()])

    def value(self, counts: Tensor) -> float:
        """The mean, and for `rmse` its root."""
        return float(_ratio(counts[0], counts[1]) ** (1 / self.power))


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else float("nan")


METRICS: dict[str, Callable[[], Any]] = {
    "top1": TopK,
    "top5": lambda: TopK(5),
    "accuracy": Accuracy,
    "miou": MeanIoU,
    "mae": MeanError,
    "rmse": lambda: MeanError(2),
}


def metric_named(name: str) -> Any:
    """A built-in metric with its defaults.

    Raises:
        UsageError: an unknown name.
    """
    if name not in METRICS:
        raise UsageError(f"unknown metric {name!r}", f"built-in metrics: {', '.join(METRICS)}; or pass an object")
    return METRICS[name]()
