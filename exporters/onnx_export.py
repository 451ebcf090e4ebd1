"""PyTorch to one ONNX file: real names, dynamic batch, conv+BN folded, checked.

The dynamo exporter comes first. Where the batch cannot be dynamic it is exported with the example's batch; where
dynamo fails altogether (detectors with data-dependent sizes do) the TorchScript exporter is tried. What was used and
why is in the result. The model is run in eval mode and left as it was. Half-precision models are converted by the
caller (a float32 copy): this module exports the dtypes it is given.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import Tensor, nn

from exporters.errors import ExportFailed, first_line
from exporters.outputs import evaluating, flatten_outputs
from exporters.proto import strip_prefix, strip_remarks
from exporters.quiet import no_native_stdout, quiet

__all__ = ["ExportFailed", "ExportResult", "export", "flatten_outputs"]

ONE_FILE_BYTES = 2_000_000_000  # protobuf refuses messages of 2 GiB; weights above this go to a second file
BATCH = "N"
Exporter = Literal["dynamo", "torchscript"]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written. `file_bytes` counts the weights file too, where there is one; `seconds` is wall time."""

    path: Path
    exporter: Exporter
    opset: int
    ir_version: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_batch: bool
    nodes: int
    file_bytes: int
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Job:
    """One thing to export; `path` lies in a temporary folder."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    path: Path
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    opset: int | None
    external_data: bool


def export(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    opset: int | None = None,
) -> ExportResult:
    """Write `model` as ONNX to `path` (and `path`.data when the weights exceed 2 GB); nothing is printed.

    Args:
        model: any module whose outputs `flatten_outputs` understands; not changed.
        example_inputs: positional inputs; dimension 0 of those that share the first one's is the batch.
        path: the file; it appears only when the export has succeeded and the ONNX checker accepts it.
        input_names: one per input.
        output_names: one per flattened output; default: the names of `flatten_outputs`.
        dynamic_batch: whether the batch is to be free; where that fails it is fixed and a note says why.
        opset: default: the exporter's own.

    Raises:
        ExportFailed: no exporter can write this model.
        ValueError: as many names as inputs or outputs are needed, and they must differ.
    """
    begin = time.perf_counter()
    path = Path(path)
    names = _output_names(model, example_inputs, tuple(input_names), output_names)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
        job = _Job(
            model=model,
            inputs=tuple(example_inputs),
            path=Path(folder) / path.name,
            input_names=tuple(input_names),
            output_names=names,
            opset=opset,
            external_data=_weight_bytes(model) > ONE_FILE_BYTES,
        )
        exporter, notes = _first_success(job, dynamic_batch)
        result = _describe(job, exporter, notes)
        for file in Path(folder).iterdir():
            os.replace(file, path.parent / file.name)
    return dataclasses.replace(result, path=path, seconds=time.perf_counter() - begin)


def _weight_bytes(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _output_names(
    model: nn.Module, inputs: tuple[Tensor, ...], input_names: tuple[str, ...], wanted: Sequence[str] | None
) -> tuple[str, ...]:
    if len(input_names) != len(inputs) or len(set(input_names)) != len(inputs):
        raise ValueError(f"{len(inputs)} inputs need as many different names, not {list(input_names)}")
    with evaluating(model):
        found = tuple(flatten_outputs(model(*inputs)))
    if wanted is None:  # an output called like an input would make the graph ambiguous
        return tuple(f"{name}_out" if name in input_names else name for name in found)
    if len(wanted) != len(found) or len({*wanted, *input_names}) != len(found) + len(inputs):
        raise ValueError(f"{len(found)} outputs ({', '.join(found)}) need as many new names, not {list(wanted)}")
    return tuple(wanted)


class _Flat(nn.Module):
    """The model with its tensors as a flat tuple, which every exporter accepts whatever the model returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(flatten_outputs(self.model(*inputs)).values())


def _first_success(job: _Job, dynamic_batch: bool) -> tuple[Exporter, list[str]]:
    """Try the exporters in order; (the one that worked, notes on what did not and on what it did).

    Raises:
        ExportFailed: none worked; the reason is that of the dynamo exporter.
    """
    notes: list[str] = []
    reasons: list[str] = []
    attempts: list[tuple[Exporter, Callable[[_Job, bool], list[str]]]] = [
        ("dynamo", _export_dynamo),
        ("torchscript", _export_torchscript),
    ]
    for exporter, attempt in attempts:
        for dynamic in (True, False) if dynamic_batch else (False,):
            reason = _try(attempt, job, dynamic, notes)
            if reason is None:
                return exporter, notes + _left_static(job, dynamic)
            reasons.append(reason)
            how = "a dynamic batch" if dynamic else f"batch {_batch(job)}"
            notes.append(f"the {exporter} exporter failed with {how}: {reason}")
            if _hopeless(reason):
                break
    raise ExportFailed(reasons[0])


def _try(attempt: Callable[[_Job, bool], list[str]], job: _Job, dynamic: bool, notes: list[str]) -> str | None:
    """None when the file was written and is sound; else why not."""
    try:
        remarks = attempt(job, dynamic)
        _finish(job)
        if dynamic and not _is_dynamic(job.path, job.inputs):
            # Traced at a batch other than the example's (a batch of 1 is doubled): fix the caller's own batch instead.
            remarks = [*remarks, *attempt(job, False)]
            _finish(job)
    except Exception as error:  # any class: torch.onnx documents none; the reason goes to the caller
        job.path.unlink(missing_ok=True)
        return first_line(error)
    notes.extend(remarks)
    return None


def _hopeless(reason: str) -> bool:
    """Whether a fixed batch cannot help either: the failure is about data or a missing operator, and costs minutes."""
    return any(word in reason for word in ("data-dependent", "No ONNX function", "Exporting the operator"))


def _left_static(job: _Job, asked_dynamic: bool) -> list[str]:
    if not asked_dynamic or _is_dynamic(job.path, job.inputs):
        return []
    return [f"the model's own code fixes the batch at {_batch(job)}: a dynamic batch is not possible"]


def _batch(job: _Job) -> int:
    return job.inputs[0].shape[0] if job.inputs and job.inputs[0].dim() else 1


def _export_dynamo(job: _Job, dynamic: bool) -> list[str]:
    inputs = _at_least_two(job.inputs) if dynamic else job.inputs
    batch = torch.export.Dim(BATCH)
    axes = tuple({0: batch} if has_batch else {} for has_batch in _batched(job.inputs))
    _call_exporter(
        job, inputs, dynamo=True, external_data=job.external_data, dynamic_shapes=(axes,) if dynamic else None
    )
    return ["the weights are in a second file (over 2 GB)"] if job.external_data else []


def _export_torchscript(job: _Job, dynamic: bool) -> list[str]:
    tensors = [name for name, has in zip(job.input_names, _batched(job.inputs), strict=True) if has]
    axes = {name: {0: BATCH} for name in [*tensors, *job.output_names]}
    with no_native_stdout():
        caught = _call_exporter(job, job.inputs, dynamo=False, dynamic_axes=axes if dynamic else None)
    fixed = sum(warning.category.__name__ == "TracerWarning" for warning in caught)
    if not fixed:
        return []
    return [f"TorchScript tracing fixed {fixed} values or decisions of the code at those of the example input"]


def _call_exporter(job: _Job, inputs: tuple[Tensor, ...], **how: Any) -> list[warnings.WarningMessage]:
    with quiet() as caught, evaluating(job.model):
        torch.onnx.export(
            _Flat(job.model).eval(),
            inputs,
            job.path,
            input_names=list(job.input_names),
            output_names=list(job.output_names),
            opset_version=job.opset,
            verbose=False,
            **how,
        )
    return caught


def _batched(inputs: tuple[Tensor, ...]) -> list[bool]:
    """Which inputs carry the batch: dimension 0 equal to that of the first input."""
    if not inputs or not inputs[0].dim():
        return [False] * len(inputs)
    return [tensor.dim() > 0 and tensor.shape[0] == inputs[0].shape[0] for tensor in inputs]


def _at_least_two(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs with a batch of at least 2: torch.export takes a size of 1 for a constant."""
    if inputs and inputs[0].dim() and inputs[0].shape[0] == 1:
        return tuple(torch.cat([t, t]) if has else t for t, has in zip(inputs, _batched(inputs), strict=True))
    return inputs


def _finish(job: _Job) -> None:
    """Original weight names, no stack traces of this machine in the file, and the checker's full check."""
    model = onnx.load(job.path, load_external_data=False)
    strip_prefix(model.graph, "model.")
    strip_remarks(model)
    job.path.write_bytes(model.SerializeToString(deterministic=True))
    with quiet():
        onnx.checker.check_model(job.path, full_check=True)


def _is_dynamic(path: Path, inputs: tuple[Tensor, ...]) -> bool:
    graph = onnx.load(path, load_external_data=False).graph
    dims = [value.type.tensor_type.shape.dim for value in graph.input]
    return any(_batched(inputs)) and all(
        bool(dim[0].dim_param) for dim, has in zip(dims, _batched(inputs), strict=True) if has
    )


def _describe(job: _Job, exporter: Exporter, notes: list[str]) -> ExportResult:
    model = onnx.load(job.path, load_external_data=False)
    return ExportResult(
        path=job.path,
        exporter=exporter,
        opset=max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        ir_version=model.ir_version,
        input_names=tuple(value.name for value in model.graph.input),
        output_names=tuple(value.name for value in model.graph.output),
        dynamic_batch=_is_dynamic(job.path, job.inputs),
        nodes=len(model.graph.node),
        file_bytes=sum(file.stat().st_size for file in job.path.parent.iterdir()),
        seconds=0.0,
        notes=tuple(notes),
    )
