"""The demo's task file: which digit, and is it even or odd. A template for your own (see also examples/two_task.py)."""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset

from compress_cli.demo.digits import is_test, load_digits
from compress_cli.tasks import Task


class Digits(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """(image, {"digit": 0..9, "parity": 0 even or 1 odd})."""

    def __init__(self, *, test: bool) -> None:
        images, digits = load_digits()
        chosen = is_test() if test else ~is_test()
        self.images, self.digits = images[chosen], digits[chosen]
        self.labels = self.digits.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.images[index], {"digit": self.digits[index], "parity": self.digits[index] % 2}


def tasks() -> tuple[Task, ...]:
    """Both tasks; outputs and targets have the same names."""
    return (
        Task("digit", output="digit", target="digit", loss="cross_entropy", metric="top1"),
        Task("parity", output="parity", target="parity", loss="cross_entropy", metric="accuracy"),
    )


def train_data() -> Digits:
    """1,438 images."""
    return Digits(test=False)


def test_data() -> Digits:
    """359 images."""
    return Digits(test=True)
