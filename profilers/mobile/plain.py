"""ONNX files as the converters of mobile runtimes want them: weights unpacked, constants folded, every size fixed."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime

from profilers.errors import MeasurementFailed, first_line
from profilers.mobile.base import Signature
from profilers.ort import open_session

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


def plain(source: Path, target: Path) -> Signature:
    """Write `source` for batch 1 after ONNX Runtime's basic optimisations, which unpack self-unpacking weights.

    Raises:
        MeasurementFailed: it cannot be loaded, or an input has free sizes besides the batch, or an unusual type.
    """
    free = {}
    for value in open_session(source).get_inputs():
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int):
                if axis or not size:
                    raise MeasurementFailed(f"input {value.name} of {source.name} has a free size: fix it at export")
                free[size] = 1
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = os.fspath(target)
    for name, size in free.items():
        options.add_free_dimension_override_by_name(name, size)
    try:
        session = onnxruntime.InferenceSession(os.fspath(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class of its own for every status
        raise MeasurementFailed(f"ONNX Runtime cannot load {source.name}: {first_line(error)}") from error
    return signature(session, source.name)


def signature(session: onnxruntime.InferenceSession, name: str) -> Signature:
    """Names, shapes and types of a session whose sizes are all fixed.

    Raises:
        MeasurementFailed: a size or type is not what a converter can take.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    for value in inputs:
        if value.type not in _DTYPES:
            raise MeasurementFailed(f"input {value.name} of {name} is of type {value.type}")
    for value in (*inputs, *outputs):
        if not all(isinstance(size, int) for size in value.shape):
            raise MeasurementFailed(f"{value.name} of {name} has a size that depends on the data: {value.shape}")
    return Signature(
        inputs=tuple(value.name for value in inputs),
        shapes=tuple(tuple(value.shape) for value in inputs),
        dtypes=tuple(_DTYPES[value.type] for value in inputs),
        outputs=tuple(value.name for value in outputs),
        out_shapes=tuple(tuple(value.shape) for value in outputs),
    )
