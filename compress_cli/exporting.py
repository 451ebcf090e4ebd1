"""What `compress export` does: checkpoint or ONNX file -> dense ONNX -> weights in the asked form -> proof -> file."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_cli.errors import InputError, UsageError, VerificationError, damaged
from compress_cli.onnx_files import free_target, onnx_errors, published
from compress_cli.translate import export_errors
from compress_cli.weight_forms import WEIGHTS, check_known, write_form

if TYPE_CHECKING:
    from compress_cli.console import Out

METHODS = ("minmax", "entropy", "percentile")
CALIBRATION_IMAGES = 128
BATCH = 8
FORMATS = ("ort", "ncnn", "mnn", "litert", "executorch")
"""Other files that can be written beside the ONNX file."""


@dataclass(frozen=True, slots=True)
class Request:
    """A checked command line. `model`: arguments of `checkpoint.load`; `images`: how calibration images are read."""

    source: Path
    target: Path
    overwrite: bool
    weights: str
    max_error: float | None
    calibration: str
    reduce_range: bool
    mobile: bool
    formats: tuple[str, ...]
    model: Mapping[str, Any]
    calib: str | None
    images: Mapping[str, Any]


def parse_request(
    file: str, output: str | None, *, overwrite: bool, formats: Sequence[str] = (), **flags: Any
) -> Request:
    """Check the flags; nothing heavy is imported. Texts in `formats` may hold several, separated by commas.

    Raises:
        UsageError: an unknown form or method, a malformed number, or a file that is in the way.
    """
    check_known("--weights", flags["weights"], WEIGHTS)
    check_known("--calibration", flags["calibration"], METHODS)
    source = Path(file)
    stem = source.name.split(".")[0] or "model"
    target = free_target(output or f"{stem}-{flags['weights']}.onnx", source, overwrite=overwrite)
    if target.suffix.lower() != ".onnx":
        raise UsageError(f"-o {target} does not end in .onnx", f"-o {target}.onnx (--ort adds the .ort file beside it)")
    error = flags["max_error"]
    if error is not None and flags["weights"] != "packed-cb":
        raise UsageError("--max-error is for --weights packed-cb", "add --weights packed-cb, or drop --max-error")
    if flags["calib"] is not None and (flags["images"]["calib_samples"] or 1) < 1:
        raise UsageError(f"--calib-samples {flags['images']['calib_samples']} is below 1", "pass at least 1")
    flags["formats"] = tuple(dict.fromkeys(name.strip() for text in formats for name in text.split(",")))
    for name in flags["formats"]:
        check_known("--format", name, FORMATS)
    if "ort" in flags["formats"]:
        free_target(str(target.with_suffix(".ort")), source, overwrite=overwrite)
    return Request(
        source=source,
        target=target,
        overwrite=overwrite,
        **{**flags, "max_error": None if error is None else _share(error)},
    )


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UsageError(f"--max-error {text!r} is not a share", "write it as 2% or 0.02, above 0 and below 1")
    return value


@dataclass(frozen=True, slots=True)
class _Dense:
    """The dense file to start from, how it came about, and what feeds it."""

    path: Path
    kind: str
    export: Mapping[str, Any] | None
    verification: Mapping[str, Any] | None
    loaded: Any


def run_export(request: Request, out: Out) -> dict[str, Any]:
    """Carry out a request; the files appear only when every proof holds.

    Raises:
        CompressError: with the exit code of design.md section 4.
    """
    begin = time.perf_counter()
    notes: list[str] = []
    _check_packages(request.formats)
    with (
        onnx_errors(),
        published(request.target, overwrite=request.overwrite) as work,
        tempfile.TemporaryDirectory() as scratch,
    ):
        dense = _dense(request, Path(scratch), out, notes)
        if request.mobile:
            notes.append(_pooling(dense.path))
        feeds, held_out = _calibration(request, dense, out)
        variant = write_form(
            dense.path,
            work,
            request.weights,
            feeds=feeds,
            held_out=held_out,
            max_error=request.max_error,
            calibration=request.calibration,
            reduce_range=request.reduce_range,
            say=out.info,
        )
        extra = _mobile_files(request, dense.path, variant, work, out)
        document = {
            "schema_version": 1,
            "ok": True,
            "command": "export",
            "source": str(request.source),
            "kind": dense.kind,
            "file": str(request.target),
            "weights": variant.weights,
            **_sizes(variant, work, dense.path),
            "export": dense.export,
            "verification": dense.verification,
            "variant": variant.to_dict(),
            **extra,
            "notes": [*notes, *variant.notes],
        }
    for note in variant.notes:
        out.warning(note)
    return _finished({**document, "seconds": time.perf_counter() - begin}, work, request.target)


def _finished(document: Mapping[str, Any], work: Path, target: Path) -> dict[str, Any]:
    """JSON types only, with the final names of the files."""
    from compress_cli.rundir import finite

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: renamed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [renamed(item) for item in value]
        return value.replace(str(work.parent), str(target.parent)) if isinstance(value, str) else value

    result: dict[str, Any] = renamed(finite(document))
    return result


def _dense(request: Request, folder: Path, out: Out, notes: list[str]) -> _Dense:
    """The dense ONNX file of what the user named.

    Raises:
        InputError: nothing says how to build the network.
        VerificationError: the export does not equal PyTorch.
    """
    from compress_cli.checkpoint.sniff import Kind, sniff

    path = folder / "dense.onnx"
    if sniff(request.source) is Kind.ONNX:
        from exporters import files
        from exporters.unpacking import unpack

        given = [flag for flag in ("arch", "arch_args", "trust_pickle") if request.model[flag]]
        if given:
            flag = "--" + given[0].replace("_", "-")
            raise UsageError(f"{flag} is for checkpoints, and {request.source} is an ONNX file", f"drop {flag}")
        names = unpack(request.source, path)
        files.check(path)
        if names:
            notes.append(f"the source is packed: {len(names)} tensors were unpacked first")
        return _Dense(path, "onnx", None, None, None)
    return _from_checkpoint(request, path, out, notes)


def _from_checkpoint(request: Request, path: Path, out: Out, notes: list[str]) -> _Dense:
    from compress_cli.checkpoint import load
    from compress_cli.shipping import callable_form
    from exporters.onnx_export import export
    from exporters.verify import verify

    out.info(f"Reading {request.source}")
    loaded = load(request.source, **request.model)
    if loaded.module is None or loaded.example_inputs is None:
        raise InputError(f"{request.source} cannot be exported: {loaded.missing_reason}", _how_to_build(loaded))
    _refuse_nonfinite(request.source, loaded.module)
    call = callable_form(loaded, loaded.module)
    out.info("Exporting to ONNX")
    with export_errors():
        result = export(
            call.module,
            call.inputs,
            path,
            input_names=call.input_names,
            output_names=call.output_names,
            dynamic_batch=call.dynamic_batch,
        )
    notes.extend((*loaded.notes, *result.notes))
    out.info("Comparing ONNX Runtime with PyTorch")
    found = verify(call.module, path, call.inputs, input_names=result.input_names)
    if not found.ok:
        raise VerificationError(
            f"ONNX Runtime does not equal PyTorch ({'; '.join(found.warnings) or 'the outputs differ'}; tolerance "
            f"{found.rtol:g}): no file was written",
            "report the network: its export is wrong",
        )
    for warning in found.warnings:
        out.warning(warning)
    section = {name: getattr(result, name) for name in result.__dataclass_fields__ if name != "path"}
    proof = {
        "ok": found.ok,
        "rtol": found.rtol,
        "max_abs": found.max_abs,
        "max_rel": found.max_rel,
        "comparisons": len(found.agreements),
        "warnings": list(found.warnings),
        "notes": list(found.notes),
    }
    return _Dense(path, str(loaded.kind), section, proof, loaded)


def _refuse_nonfinite(file: Path, network: Any) -> None:
    """Outputs of damaged weights equal themselves, and would pass every comparison. Buffers may hold infinity."""
    found = [name for name, weight in network.named_parameters() if not bool(weight.isfinite().all())]
    if found:
        raise damaged(file, found, "NaN or infinity")


def _how_to_build(loaded: Any) -> str:
    if loaded.module is None:
        return "pass --arch torchvision:NAME, timm:NAME or path/to/net.py:factory"
    return "pass --input-shape CxHxW, or --input NAME=SHAPE:dtype"


def _pooling(path: Path) -> str:
    from exporters import files
    from exporters.mobile import pooling_for_phones

    model = files.read(path)
    count = pooling_for_phones(model)
    if count:
        files.write(model, path)
        files.check(path)
    return f"{count} means over image axes written as GlobalAveragePool"


def _calibration(request: Request, dense: _Dense, out: Out) -> tuple[list[Any] | None, list[Any] | None]:
    """(feeds to calibrate on, feeds to compare on) from `--calib`; None without it."""
    if request.calib is None:
        return None, None
    from compress_cli.onnx_input import image_feeds

    feeds = image_feeds(
        dense.path,
        request.calib,
        samples=request.images["calib_samples"] or CALIBRATION_IMAGES,
        batch=BATCH,
        loaded=dense.loaded,
        seed=request.model["seed"],
        **{name: request.images[name] for name in ("preprocess", "mean", "std", "resize")},
    )
    out.info(f"Calibration: {sum(len(next(iter(f.values()))) for f in feeds)} images of {request.calib}")
    held = len(feeds) // 4
    return (feeds[held:], feeds[:held]) if held else (feeds, None)


def _sizes(variant: Any, work: Path, dense: Path) -> dict[str, Any]:
    from profilers.size import file_size

    own, plain = file_size(work), file_size(dense)
    return {
        "bytes": own.bytes,
        "gzip_bytes": own.gzip_bytes,
        "dense_bytes": plain.bytes,
        "dense_gzip_bytes": plain.gzip_bytes,
    }


def _check_packages(formats: Sequence[str]) -> None:
    """Refuse before any work.

    Raises:
        UsageError: the packages of a format are not installed.
    """
    if not set(formats) - {"ort"}:
        return
    from exporters.phone_files import missing_packages

    for name in formats:
        absent = None if name == "ort" else missing_packages(name)
        if absent:
            raise UsageError(f"--format {name}: {absent.partition(' (')[0]}", absent.partition(" (")[2].rstrip(")"))


def _mobile_files(request: Request, dense: Path, variant: Any, work: Path, out: Out) -> dict[str, Any]:
    found: dict[str, Any] = {"mobile": None, "ort": None, "phone_files": []}
    if request.mobile:
        from exporters.mobile import usability

        found["mobile"] = [row.to_dict() for row in usability(dense)]
    for name in request.formats:
        out.info(f"Converting to {name}")
        if name == "ort":
            from exporters.mobile import convert_to_ort

            source = work if variant.weights not in ("dense",) else dense
            found["ort"] = convert_to_ort(source, work.with_suffix(".ort")).to_dict()
        else:
            found["phone_files"].append(_phone_files(name, dense, work))
    return found


def _phone_files(name: str, dense: Path, work: Path) -> dict[str, Any]:
    """The dense network in one format.

    Raises:
        VerificationError: the format's runtime answers otherwise than ONNX Runtime.
    """
    from exporters.feeds import random_feeds
    from exporters.phone_files import TOLERANCE, convert_for_phone

    found = convert_for_phone(name, dense, work, random_feeds(dense, 2))
    if not found.equal:
        raise VerificationError(
            f"{found.title}'s outputs differ from ONNX Runtime's by {found.comparison.rms_rel:.2%}, allowed: "
            f"{TOLERANCE[found.half_precision]:.1%}; no file was written",
            f"leave {name} out of --format: its converter does not understand this network",
        )
    return found.to_dict()
