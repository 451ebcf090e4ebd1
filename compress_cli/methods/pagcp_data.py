"""The user's tasks and images as `pruners.pagcp` takes them; unlabelled: its own outputs are the tasks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress_cli.errors import InputError
from exporters.outputs import evaluating, flatten_outputs
from pruners.pagcp import TaskData, constant_floors
from pruners.pagcp.tasks import LEAST_HELD_OUT

if TYPE_CHECKING:
    from compress_cli.data import Batch
    from compress_cli.quality import Quality


def task_data(quality: Quality, model: nn.Module) -> TaskData:
    """Calibration batches in memory, judged by the tasks' losses, with floors from a constant predictor.

    A part is held out for the final check, unless it were too small to tell anything.

    Args:
        model: the original, on the quality's device.

    Raises:
        InputError: too few images, or outputs and targets that do not fit.
    """
    batches, held_out = quality.split_batches()
    if sum(map(len, held_out)) < LEAST_HELD_OUT:
        batches, held_out = quality.calibration_batches(), []
    if sum(map(len, batches)) < 2 or any(len(batch) < 2 for batch in batches):
        raise InputError("the search needs at least two calibration images", "add images, or raise --calib-samples")
    if quality.data.calib_labelled and quality.tasks:
        data = TaskData(batches, _forward, lambda outputs, batch: _losses(quality, outputs, batch))
    else:
        data = _teacher_data(model, batches, held_out)
    return dataclasses.replace(data, held_out=held_out, floors=constant_floors(data, model))


def _forward(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    return flatten_outputs(model(*_batch(batch).inputs))


def _losses(quality: Quality, outputs: Any, batch: Any) -> dict[str, Tensor]:
    return {task.name: task.losses(outputs, _batch(batch).target) for task in quality.tasks}


def _teacher_data(model: nn.Module, batches: list[Batch], held_out: list[Batch]) -> TaskData:
    """Every output of the original is a task: squared distance to it, over its variance (1 for a constant output)."""
    with evaluating(model):
        outputs = [_forward(model, batch) for batch in (*batches, *held_out)]
    wanted = {id(batch): found for batch, found in zip((*batches, *held_out), outputs, strict=True)}
    floating = [name for name, value in outputs[0].items() if value.is_floating_point()]
    if not floating:
        raise InputError("the network's outputs are no real numbers to compare", "pass labelled data with --task FILE")
    scales = {name: _spread(torch.cat([found[name] for found in outputs])) for name in floating}

    def losses(found: Any, batch: Any) -> dict[str, Tensor]:
        return {
            name: (found[name] - wanted[id(batch)][name]).flatten(1).square().mean(1) / scale
            for name, scale in scales.items()
        }

    def probes(found: Any, batch: Any) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(int(_batch(batch).positions[0]))
        made = {}
        for name, scale in scales.items():
            values = found[name].flatten(1)
            signs = torch.randint(0, 2, values.shape, generator=generator).to(values) * 2 - 1
            made[name] = (values * signs).sum(1) / (scale * values.shape[1]) ** 0.5
        return made

    return TaskData(batches, _forward, losses, probes=probes)


def _spread(outputs: Tensor) -> float:
    """Mean squared distance of the outputs from their mean over the samples."""
    values = outputs.double()
    return float((values - values.mean(0, keepdim=True)).square().mean()) or 1.0


def _batch(batch: Any) -> Batch:
    found: Batch = batch
    return found
