"""Latency of PyTorch modules, eager or compiled, on the CPU or a GPU, interleaved like ONNX files.

On CUDA an inference is timed by events on the stream, so that launching from Python is not counted twice; each run is
synchronised. Compilation happens before the warm-up and its time is reported as `load_ms`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from profilers.errors import MeasurementFailed, first_line
from profilers.latency import Comparison, Timed, compare_runs
from profilers.modes import modes_kept


def compare_modules(
    models: Sequence[nn.Module],
    inputs: tuple[torch.Tensor, ...],
    *,
    device: str = "cpu",
    compiled: bool = False,
    budget_s: float = 6.0,
) -> Comparison:
    """Time one or two modules (the original first) in eval mode on `device`; they are left as they were, but moved.

    Args:
        inputs: one batch; moved to the device.
        compiled: through `torch.compile`.

    Raises:
        MeasurementFailed: the device is not there, or a model does not run or compile.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MeasurementFailed("PyTorch sees no CUDA device here")
    names = ("original", "compressed")[-len(models) :]
    moved = tuple(tensor.to(device) for tensor in inputs)
    with modes_kept(*models):
        timed = [
            _timed(name, model.to(device).eval(), moved, compiled) for name, model in zip(names, models, strict=True)
        ]
        provider = f"torch {'compiled' if compiled else 'eager'} on {device}"
        batch = int(moved[0].shape[0])
        return compare_runs(timed, provider=provider, threads=torch.get_num_threads(), batch=batch, budget_s=budget_s)


def _timed(name: str, model: nn.Module, inputs: tuple[torch.Tensor, ...], compiled: bool) -> Timed:
    call: Callable[..., Any] = torch.compile(model) if compiled else model
    begin = time.perf_counter()
    run = partial(_once, call, inputs)
    try:
        run()
    except Exception as error:  # a model's own code and the compiler raise any class
        raise MeasurementFailed(f"the {name} model does not run: {first_line(error)}") from error
    first_ms = (time.perf_counter() - begin) * 1e3
    on_gpu = inputs[0].is_cuda
    return Timed(name, run, first_ms if compiled else 0.0, first_ms, partial(_event_seconds, run) if on_gpu else None)


def _once(call: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> Any:
    with torch.inference_mode():
        result = call(*inputs)
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    return result


def _event_seconds(run: Callable[[], Any]) -> float:
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
