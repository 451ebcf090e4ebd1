"""What a network is for: which output is compared with which target, by which loss, reported in which metric."""

from compress_cli.tasks.losses import L1, BinaryCrossEntropy, Cosine, CrossEntropy, MeanSquared, SmoothL1, loss_named
from compress_cli.tasks.metrics import Accuracy, MeanError, MeanIoU, Metric, TopK, metric_named
from compress_cli.tasks.task import Loss, Task, TaskMismatch, classification, mean_present
from compress_cli.tasks.taskfile import TaskFile, read_task_file

__all__ = [
    "L1",
    "Accuracy",
    "BinaryCrossEntropy",
    "Cosine",
    "CrossEntropy",
    "Loss",
    "MeanError",
    "MeanIoU",
    "MeanSquared",
    "Metric",
    "SmoothL1",
    "Task",
    "TaskFile",
    "TaskMismatch",
    "TopK",
    "classification",
    "loss_named",
    "mean_present",
    "metric_named",
    "read_task_file",
]
