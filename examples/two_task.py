"""A task file: what `--task examples/two_task.py` needs to know about your data, losses and metrics.

    compress prune original.pt --arch compress_cli.demo.net:two_task_cnn --input-shape 1x8x8 \
        --sparsity 0.9 --task examples/two_task.py

Functions, each called once: `tasks()`, then `train_data()`, `test_data()` and, if you have one, `calib_data()`; what a
file lacks is not done (no training data, no training). A data set has `len()` and gives (input, target) at an index.
`input` is a tensor without the batch dimension, or a tuple or dict of them; `target` is anything that
`torch.utils.data.default_collate` can join: a number, a tensor, a dict. Several processes may read it at once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from compress_cli.demo.digits import is_test, load_digits
from compress_cli.tasks import Accuracy, CrossEntropy, Task


class Digits(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images with two labels each; every seventh image has no parity label, as real data often lacks some."""

    def __init__(self, *, test: bool) -> None:
        images, digits = load_digits()
        chosen = is_test() if test else ~is_test()
        self.images, self.digits = images[chosen], digits[chosen]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        digit = self.digits[index]
        missing = torch.tensor(-100)  # the built-in losses and metrics leave it out
        return self.images[index], {"digit": digit, "parity": digit % 2 if index % 7 else missing}


def parity_loss(output: Tensor, target: Tensor) -> Tensor:
    """A loss of your own: (batch,) numbers, NaN for samples without a target."""
    return CrossEntropy()(output, target)


def tasks() -> tuple[Task, ...]:
    """One `Task` per question: which output, which target, loss, metric.

    `output` is a name or index among the model's outputs as `compress inspect` lists them, None for the first.
    """
    return (
        Task("digit", output="digit", target="digit", loss="cross_entropy", metric="top1", max_drop=1.0),
        Task("parity", output="parity", target="parity", loss=parity_loss, metric=Accuracy(), weight=0.5),
    )


def train_data() -> Digits:
    """What training sees."""
    return Digits(test=False)


def test_data() -> Digits:
    """What the reported numbers are measured on; never used for any choice."""
    return Digits(test=True)
