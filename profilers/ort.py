"""ONNX Runtime sessions for timing, and inputs for a file: seeded normal tensors of the shapes that it declares."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from profilers.errors import MeasurementFailed, first_line

Array = NDArray[Any]

CPU = "CPUExecutionProvider"
INSTALL = {
    "CUDAExecutionProvider": "pip install onnxruntime-gpu, on a machine with an NVIDIA GPU",
    "TensorrtExecutionProvider": "pip install onnxruntime-gpu, and TensorRT's libraries",
    "OpenVINOExecutionProvider": "pip install onnxruntime-openvino",
    "QNNExecutionProvider": "pip install onnxruntime-qnn, on a Snapdragon",
    "CoreMLExecutionProvider": "onnxruntime on a Mac has it",
}
"""What brings a provider that is not in the plain package; one of these at a time instead of `onnxruntime`."""
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


def open_session(path: Path, threads: int = 1, provider: str = CPU) -> onnxruntime.InferenceSession:
    """A session with `threads` intra-op threads, all optimisations, no log output.

    Threads stop spinning when a run ends, so that two sessions in one process do not disturb each other.

    Raises:
        MeasurementFailed: the provider is not installed or did not take the file, or the file cannot be loaded.
    """
    available = onnxruntime.get_available_providers()
    if provider not in available:
        way = f" ({INSTALL[provider]})" if provider in INSTALL else ""
        raise MeasurementFailed(f"ONNX Runtime has no {provider} here{way}; it has {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=[provider])
    except Exception as error:  # onnxruntime raises a class of its own for every status
        raise MeasurementFailed(f"ONNX Runtime cannot load {path.name}: {first_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise MeasurementFailed(f"{provider} did not start: ONNX Runtime fell back to {session.get_providers()[0]}")
    return session


def make_inputs(session: onnxruntime.InferenceSession, batch: int = 1, seed: int = 0) -> dict[str, Array]:
    """Seeded inputs by name: the batch where the first dimension is free, normal floats, ones for integers.

    Raises:
        MeasurementFailed: an input has other free dimensions, or a type without a random tensor.
    """
    generator = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for value in session.get_inputs():
        shape = [
            size if isinstance(size, int) else (batch if axis == 0 else 0) for axis, size in enumerate(value.shape)
        ]
        if 0 in shape:
            raise MeasurementFailed(f"input {value.name} has the shape {value.shape}: give an input of a fixed size")
        if value.type not in _DTYPES:
            raise MeasurementFailed(f"input {value.name} is of type {value.type}: give an input")
        dtype = _DTYPES[value.type]
        floating = np.issubdtype(dtype, np.floating)
        inputs[value.name] = (generator.standard_normal(shape) if floating else np.ones(shape)).astype(dtype)
    return inputs


def with_batch(inputs: Mapping[str, Array], batch: int) -> dict[str, Array]:
    """`inputs` repeated or cut along the axis 0 that those with the first input's batch share."""
    first = next(iter(inputs.values()))
    have = first.shape[0] if first.ndim else 0
    return {
        name: np.resize(array, (batch, *array.shape[1:])) if array.ndim and array.shape[0] == have else array
        for name, array in inputs.items()
    }


def feed_for(session: onnxruntime.InferenceSession, inputs: Mapping[str, Array], path: Path) -> dict[str, Array]:
    """`inputs` under the session's own names: by name, or in order when no name fits.

    Raises:
        MeasurementFailed: the file wants other inputs, or does not run on these.
    """
    names = [value.name for value in session.get_inputs()]
    if set(names) <= set(inputs):
        feed = {name: inputs[name] for name in names}
    elif len(names) == len(inputs) and not set(names) & set(inputs):
        feed = dict(zip(names, inputs.values(), strict=True))
    else:
        raise MeasurementFailed(f"{path.name} wants the inputs {', '.join(names)}, not {', '.join(inputs)}")
    try:
        session.run(None, feed)
    except Exception as error:  # onnxruntime raises a class of its own for every status
        raise MeasurementFailed(f"ONNX Runtime cannot run {path.name} on these inputs: {first_line(error)}") from error
    return feed
