"""Learning from the original: the distance between a compressed network's outputs and the original's.

Hinton, Vinyals, Dean 2015 (arXiv 1503.02531): the Kullback-Leibler divergence of outputs softened by a temperature T,
times T^2 so that its gradient keeps its size. Outputs that are no class scores are compared by relative squared error.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compress_cli.tasks import CrossEntropy, Task


def teacher_loss(task: Task, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean distance of a task's output to the teacher's."""
    student, teacher = student.float(), teacher.float()
    if isinstance(task.loss, CrossEntropy):
        soft = F.log_softmax(student / temperature, dim=1)
        wanted = F.log_softmax(teacher / temperature, dim=1)
        divergence = F.kl_div(soft, wanted, log_target=True, reduction="none").sum(1)
        return divergence.mean() * temperature**2
    scale = teacher.square().mean().clamp(min=1e-12)
    return torch.mean((student - teacher) ** 2) / scale
