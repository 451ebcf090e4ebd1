"""ONNX to the files of mobile runtimes (ncnn, MNN, LiteRT, ExecuTorch), checked against ONNX Runtime.

Conversion and check run in processes of their own: a model that a runtime cannot take can end them. Each runtime needs
its own packages, see `profilers.mobile`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.errors import BadOnnxFile
from exporters.feeds import Comparison, Feed, answers, compare_answers
from exporters.unpacking import unpack
from profilers.errors import MeasurementFailed
from profilers.mobile.base import convert_in_process, missing
from profilers.mobile.plain import plain
from profilers.mobile.registry import RUNTIMES

Array = NDArray[Any]

FORMATS = ("ncnn", "mnn", "litert", "executorch")
TOLERANCE = {True: 0.02, False: 0.001}
"""Largest relative root mean square difference from ONNX Runtime, by half precision. Measured on MobileNetV2 with
random weights: 7e-4 (ncnn) and 8e-3 (MNN) with fp16 weights, 1e-6 with fp32 (all four)."""
_RUN = """
import numpy
from pathlib import Path
from profilers.mobile.plain import signature
from profilers.mobile.registry import RUNTIMES
from profilers.ort import open_session
name, model, given, found, *files = sys.argv[1:]
known = signature(open_session(Path(model)), model)
once = RUNTIMES[name].open([Path(file) for file in files], known, 1)
results = {}
with numpy.load(given) as inputs:
    for case in range(len(inputs.files) // len(known.inputs)):
        feed = [inputs[f"{case}:{place}"] for place in range(len(known.inputs))]
        results.update({f"{case}:{place}": value for place, value in enumerate(once(feed))})
numpy.savez(found, **results)
"""


@dataclass(frozen=True, slots=True)
class PhoneFiles:
    """The files of one model in one format, and how their answers differ from ONNX Runtime's on inputs of batch 1."""

    format: str
    title: str
    files: tuple[Path, ...]
    bytes: int
    half_precision: bool
    comparison: Comparison

    @property
    def equal(self) -> bool:
        """Whether the answers agree to the tolerance of the precision."""
        return self.comparison.rms_rel <= TOLERANCE[self.half_precision]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "files": [str(path) for path in self.files]}


def missing_packages(format: str) -> str | None:
    """None when files of `format` can be made here, else what is not installed and what to type."""
    return missing(RUNTIMES[format])


def convert_for_phone(
    format: str, source: Path, target: Path, feeds: Sequence[Feed], *, half_precision: bool = True
) -> PhoneFiles:
    """Write `source` in `format` as `target` with the endings of the format, and compare answers.

    Args:
        format: one of `FORMATS`.
        source: an ONNX file, dense or packed (it is unpacked first; weights are dense in all of these formats).
        target: a path whose ending is replaced.
        feeds: inputs to compare on, at least one; only the first sample of each batch is used.
        half_precision: fp16 weights, half the size, in formats that store them (ncnn, MNN).

    Raises:
        BadOnnxFile: packages are missing, the converter refuses the model, or the runtime cannot run it.
    """
    runtime = RUNTIMES[format]
    absent = missing(runtime)
    if absent:
        raise BadOnnxFile(source, absent)
    half = half_precision and runtime.half
    single = [{name: array[:1] for name, array in feed.items()} for feed in feeds]
    with tempfile.TemporaryDirectory(prefix=f".{format}-", dir=target.parent) as name:
        folder = Path(name)
        unpack(source, folder / "dense.onnx")
        try:
            signature = plain(folder / "dense.onnx", folder / "plain.onnx")
            made = runtime.convert(folder / "plain.onnx", signature, folder, half=half)
            got = _answers(format, folder, signature.inputs, made, single)
        except MeasurementFailed as error:
            raise BadOnnxFile(source, error.reason) from error
        comparison = compare_answers(answers(source, single), got)
        files = tuple(target.with_suffix(suffix) for suffix in runtime.suffixes)
        for path, final in zip(made, files, strict=True):
            os.replace(path, final)
    size = sum(path.stat().st_size for path in files)
    return PhoneFiles(format, runtime.title, files, size, half, comparison)


def _answers(
    format: str, folder: Path, names: Sequence[str], made: Sequence[Path], feeds: Sequence[Feed]
) -> list[list[Array]]:
    """The runtime's outputs for each of `feeds`, computed in another process."""
    cases = {f"{case}:{place}": feed[name] for case, feed in enumerate(feeds) for place, name in enumerate(names)}
    given, found = folder / "inputs.npz", folder / "answers.npz"
    np.savez(given, **cases)  # type: ignore[arg-type]  # its last keyword is a flag
    words = [format, str(folder / "plain.onnx"), str(given), str(found), *map(str, made)]
    convert_in_process(_RUN, words, what=RUNTIMES[format].title)
    with np.load(found) as results:
        count = len(results.files) // len(feeds)
        return [[results[f"{case}:{place}"] for place in range(count)] for case in range(len(feeds))]
