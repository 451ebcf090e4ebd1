"""From a module in memory to a verified, packed, measured ONNX file in the run folder.

The original network is exported first (its size and latency are the baseline, and a model that no exporter can write
is refused before any work is done); the compressed one is exported from the `model.pt` that was read back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress_cli.errors import InputError, VerificationError
from compress_cli.onnx_files import onnx_errors
from compress_cli.predicted import predictions
from compress_cli.report import Artifact
from compress_cli.translate import export_errors
from compress_cli.weight_forms import write_form
from exporters.onnx_export import ExportResult, export
from exporters.verify import verify
from profilers.size import file_size

if TYPE_CHECKING:
    from compress_cli.checkpoint import LoadedModel
    from compress_cli.session import Session

FEED_BATCH = 8
WORK = ".work"
"""Folder inside the run folder for files that only serve comparison; gone when the run ends."""


@dataclass(frozen=True, slots=True)
class Shipment:
    """The report's sections about the ONNX file; all empty where there was no export."""

    export: Mapping[str, Any] | None = None
    verification: Mapping[str, Any] | None = None
    packing: Mapping[str, Any] | None = None
    latency: Mapping[str, Any] | None = None
    predictions: tuple[Mapping[str, Any], ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CallableForm:
    """A network as exporters and runtimes call it: tensors with a batch dimension, named."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...] | None
    dynamic_batch: bool


class _ListOfOne(nn.Module):
    """A detection network that takes a list of images, called with a batch of one image."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Any:
        return self.module([image[0]])


def callable_form(loaded: LoadedModel, module: nn.Module) -> CallableForm:
    """The network with its example inputs; detection networks get a single image instead of a list."""
    inputs = loaded.example_inputs or ()
    if any(isinstance(item, list) for item in inputs):
        images = tuple(item[0].unsqueeze(0) for item in inputs)
        return CallableForm(_ListOfOne(module), images, loaded.input_names, loaded.output_names, dynamic_batch=False)
    return CallableForm(module, inputs, loaded.input_names, loaded.output_names, dynamic_batch=True)


def can_ship(session: Session, loaded: LoadedModel) -> bool:
    """Whether an ONNX file is wanted and possible; notes why not."""
    if not session.config.export:
        session.note("no ONNX file: --no-export")
        return False
    if loaded.module is None or loaded.example_inputs is None:
        session.note(f"no ONNX file, FLOPs or latency: {loaded.missing_reason}")
        return False
    return True


def export_original(session: Session, loaded: LoadedModel) -> ExportResult:
    """Export the untouched network beside the run's files (removed at the end).

    Raises:
        UnsupportedModelError: no exporter can write it.
    """
    assert loaded.module is not None  # `can_ship` has been asked
    with session.stage("export", "Exporting the original network to ONNX (the baseline)"), export_errors():
        return _export(callable_form(loaded, loaded.module), _work_file(session, "original"))


def _work_file(session: Session, role: str) -> Path:
    """A file that is called `model.onnx` already: what refers to it (external data) survives the move."""
    keep = session.shared.folder if role == "original" else None
    folder = (keep or session.folder.file(WORK)) / role
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "model.onnx"


def _export(call: CallableForm, path: Path) -> ExportResult:
    return export(
        call.module,
        call.inputs,
        path,
        input_names=call.input_names,
        output_names=call.output_names,
        dynamic_batch=call.dynamic_batch,
    )


def ship(
    session: Session,
    loaded: LoadedModel,
    module: nn.Module,
    original: ExportResult,
    images: Sequence[Tensor] = (),
) -> Shipment:
    """Export, verify against PyTorch, choose the weights' form, measure; `model.onnx` appears only when all is well.

    `images`: batches of inputs for forms of weights that are calibrated; random ones where there are none.

    Raises:
        UnsupportedModelError: no exporter can write the compressed network.
        VerificationError: ONNX Runtime and PyTorch disagree; no `model.onnx` is left.
    """
    folder, config = session.folder, session.config
    call = callable_form(loaded, module)
    with session.stage("export", "Exporting the compressed network to ONNX"), export_errors():
        result = _export(call, _work_file(session, "compressed"))
    for note in result.notes:
        session.note(f"ONNX export: {note}")
    with session.stage("verify", "Comparing ONNX Runtime with PyTorch"):
        verification = _verify(session, call, result.path, result)
    with session.stage("pack"), onnx_errors():
        shipped, feeds = _work_file(session, "shipped"), _feeds(call, images)
        variant = write_form(result.path, shipped, config.weights, feeds=feeds, say=session.out.info)
    for note in variant.notes:
        session.note(note)
    dense = _artifact("onnx dense", result.path, "the same with dense weights")
    target = _deliver(shipped, folder.path)
    latency = _latency(session, call, original.path, target) if config.bench else None
    if not config.bench:
        session.note("latency not measured: --no-bench")
    artifacts = (
        session.baseline.once("original size", lambda: original_size(original)),
        _artifact("onnx", target, target.name),
        *([dense] if variant.weights != "dense" else []),
    )
    section = {name: getattr(result, name) for name in result.__dataclass_fields__ if name != "path"}
    names = {"files": [path.name for path in variant.files]}  # they lie in a working folder until the run is done
    packing = {**variant.to_dict(), **names} if variant.weights != "dense" else None
    predicted = tuple(predictions(config.limits(), original.path, target, config.threads))
    weights = {"weights": variant.weights}
    return Shipment({**section, **weights}, verification, packing, latency, predicted, artifacts)


def _feeds(call: CallableForm, images: Sequence[Tensor]) -> list[dict[str, Any]] | None:
    """Calibration batches as a runtime takes them; None where the network has other inputs than one image."""
    if len(call.inputs) != 1 or not images:
        return None
    fixed = None if call.dynamic_batch else call.inputs[0].shape[0]
    name = call.input_names[0]
    batches = [batch[: fixed or FEED_BATCH] for batch in images]
    return [{name: batch.cpu().float().numpy()} for batch in batches if len(batch)]


def _verify(session: Session, call: CallableForm, path: Path, result: ExportResult) -> dict[str, Any]:
    found = verify(call.module, path, call.inputs, input_names=result.input_names)
    document = {
        "agreements": [{name: getattr(item, name) for name in item.__dataclass_fields__} for item in found.agreements],
        "ok": found.ok,
        "rtol": found.rtol,
        "atol": found.atol,
        "max_abs": found.max_abs,
        "max_rel": found.max_rel,
        "warnings": list(found.warnings),
        "notes": list(found.notes),
    }
    if not found.ok:
        worst = "; ".join(found.warnings) or "the outputs differ"
        raise VerificationError(
            f"ONNX Runtime does not equal PyTorch ({worst}; tolerance {found.rtol:g}): no model.onnx was written",
            "use --no-export for the PyTorch model alone, and report the network: its export is wrong",
        )
    for warning in found.warnings:
        session.warn(f"ONNX: {warning}")
    for note in found.notes:
        session.note(f"ONNX: {note}")
    return document


def _latency(session: Session, call: CallableForm, original: Path, compressed: Path) -> dict[str, Any] | None:
    from profilers.errors import MeasurementFailed
    from profilers.latency import compare

    feed = {name: tensor.numpy() for name, tensor in zip(call.input_names, call.inputs, strict=True)}
    with session.stage("latency", "Measuring the latency of both ONNX files, interleaved"):
        try:
            return compare(original, compressed, inputs=feed, threads=session.config.threads).to_dict()
        except MeasurementFailed as error:
            session.warn(f"latency could not be measured: {error}")
            return None


def _artifact(role: str, path: Path, name: str) -> Artifact:
    size = file_size(path)
    return Artifact(role, name, size.bytes, size.gzip_bytes)


def original_size(original: ExportResult) -> Artifact:
    """Bytes of the original network as an ONNX file."""
    return _artifact("original onnx", original.path, "original, exported by compress")


def checkpoint_size(loaded: LoadedModel) -> Artifact:
    """Bytes of the checkpoint as it was given."""
    return _artifact("original checkpoint", loaded.path, loaded.path.name)


def checkpoint_artifacts(session: Session, loaded: LoadedModel) -> tuple[Artifact, ...]:
    """Sizes of the original checkpoint and of the written `model.pt` (and its twin)."""
    with session.stage("gzip"):
        rows = [session.baseline.once("checkpoint size", lambda: checkpoint_size(loaded))]
        for role, file in (("checkpoint", "model.pt"), ("safetensors", "model.safetensors")):
            if session.folder.file(file).exists():
                rows.append(_artifact(role, session.folder.file(file), file))
    return tuple(rows)


def _deliver(source: Path, folder: Path) -> Path:
    """Move a finished file, and its external data where there is some, into the run folder."""
    target = folder / source.name
    try:
        for file in sorted(source.parent.iterdir(), reverse=True):  # the data before the model that refers to it
            os.replace(file, folder / file.name)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}", "check the disk, or choose -o DIR") from error
    return target


@contextmanager
def working_files(session: Session) -> Iterator[None]:
    """Remove the files that only serve comparison, whatever happens."""
    try:
        yield
    finally:
        shutil.rmtree(session.folder.file(WORK), ignore_errors=True)


class OnnxNetwork(nn.Module):
    """The written file behind the interface of a network, to evaluate what is shipped."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        from exporters.verify import session

        self._runtime = session(path)
        self._inputs = [value.name for value in self._runtime.get_inputs()]
        self._outputs = [value.name for value in self._runtime.get_outputs()]

    def forward(self, *inputs: Tensor) -> Any:
        """Outputs by name, or the one output, on the device of the inputs."""
        feed = {name: tensor.cpu().numpy() for name, tensor in zip(self._inputs, inputs, strict=True)}
        found = [torch.from_numpy(array).to(inputs[0].device) for array in self._runtime.run(None, feed)]
        return found[0] if len(found) == 1 else dict(zip(self._outputs, found, strict=True))
