"""The demo's network: a few convolutions and two heads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class TwoTaskCNN(nn.Module):
    """(batch, 1, 8, 8) -> {"digit": (batch, 10), "parity": (batch, 2)} logits."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.digit = nn.Linear(2 * width * 4, 10)
        self.parity = nn.Linear(2 * width * 4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of both tasks."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)) + x)
        x = F.max_pool2d(x, 2).flatten(1)
        return {"digit": self.digit(x), "parity": self.parity(x)}


def two_task_cnn(width: int = 24) -> TwoTaskCNN:
    """33,876 parameters at the default width."""
    return TwoTaskCNN(width)
