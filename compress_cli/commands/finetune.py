"""`compress finetune`: train a compressed model on; its zeros and its structure stay."""

from __future__ import annotations

from typing import Any

from compress_cli import options as o
from compress_cli.commands.common import RunFlags, run_verb
from compress_cli.commands.groups import CALL, FOLDER, GATES, IMAGES, MODEL, OUTPUT, TRAINING, takes

EPILOG = """Examples:

compress finetune runs/net-magnitude-0.9/model.pt --data DIR --epochs 30 --teacher original.pt

torchrun --nproc-per-node 8 -m compress_cli finetune model.pt --data DIR --epochs 90 -o run

compress finetune model.pt --task task.py --recipe ema=0.999 --recipe label_smoothing=0.1"""


@takes(MODEL, IMAGES, TRAINING, GATES, OUTPUT, FOLDER, CALL)
def finetune(
    checkpoint: o.Checkpoint,
    data: o.DataDir = None,
    task: o.TaskFile = None,
    teacher: o.Teacher = None,
    calib_samples: o.CalibSamples = None,
    **shared: Any,
) -> int:
    """Train a model on: zeros stay zero, removed channels and factors stay as they are.

    Then export to ONNX, check it against PyTorch, measure, and report.
    """
    flags = {**locals(), "method": "finetune"}
    return run_verb("finetune", RunFlags.split(flags))
