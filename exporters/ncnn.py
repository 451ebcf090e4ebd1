"""ONNX to ncnn through its own converter (pnnx), checked against ONNX Runtime. Needs the packages `pnnx` and `ncnn`.

Both run in processes of their own: a model that they cannot take can end them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.errors import BadOnnxFile
from exporters.feeds import Comparison, Feed, answers, compare_answers, open_session
from exporters.packing import unpack

Array = NDArray[Any]

PACKAGES = ("pnnx", "ncnn")
_SECONDS = 600
_RUN = """
import sys, numpy, ncnn
param, weights, given, answers = sys.argv[1:]
net = ncnn.Net()
net.opt.num_threads = 1
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
if net.load_param(param) or net.load_model(weights):
    sys.exit("ncnn cannot load its own files")
inputs, found = numpy.load(given), {}
for case in sorted({name.split(":")[0] for name in inputs.files}):
    extractor = net.create_extractor()
    for name in inputs.files:
        if name.startswith(case + ":"):
            extractor.input("in" + name.split(":")[1], ncnn.Mat(inputs[name]).clone())
    for place in range(len(net.output_names())):
        code, value = extractor.extract(f"out{place}")
        if code:
            sys.exit(f"ncnn cannot compute output {place}")
        found[f"{case}:{place}"] = numpy.array(value)
numpy.savez(answers, **found)
"""


@dataclass(frozen=True, slots=True)
class NcnnFiles:
    """The two files of an ncnn model, and how their answers differ from ONNX Runtime's on inputs of batch 1."""

    param: Path
    weights: Path
    bytes: int
    half_precision: bool
    comparison: Comparison

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "param": str(self.param), "weights": str(self.weights)}


def missing_packages() -> tuple[str, ...]:
    """Those of `PACKAGES` that are not installed."""
    return tuple(name for name in PACKAGES if importlib.util.find_spec(name) is None)


def convert_to_ncnn(source: Path, target: Path, feeds: Sequence[Feed], *, half_precision: bool = True) -> NcnnFiles:
    """Write `source` as `target` (.param) and the same name with .bin, and compare answers.

    Args:
        source: an ONNX file, dense or packed (it is unpacked first; ncnn's weights are dense).
        target: the .param file.
        feeds: inputs to compare on, at least one; only the first sample of each batch is used.
        half_precision: fp16 weights, half the size.

    Raises:
        BadOnnxFile: a package is missing, the converter refuses the model, or ncnn cannot run it.
    """
    if missing_packages():
        raise BadOnnxFile(source, f"conversion to ncnn needs the packages {' and '.join(PACKAGES)}")
    converter = importlib.import_module("pnnx").EXEC_PATH
    single = [{name: array[:1] for name, array in feed.items()} for feed in feeds]
    weights = target.with_suffix(".bin")
    with tempfile.TemporaryDirectory(prefix=".ncnn-", dir=target.parent) as folder:
        work = Path(folder) / "model.onnx"
        unpack(source, work)
        shapes = ",".join(_shape(single[0][value.name]) for value in open_session(work).get_inputs())
        command = [converter, work.name, f"inputshape={shapes}", f"fp16={int(half_precision)}"]
        _run(command, work.parent, source, "its converter refuses the model")
        made = work.with_name("model.ncnn.param"), work.with_name("model.ncnn.bin")
        if not all(path.exists() for path in made):
            raise BadOnnxFile(source, "ncnn's converter refuses the model")
        got = _answers(made, single, source)
        expected = answers(source, single)
        alike = [[_like(a, b) for a, b in zip(r, s, strict=True)] for r, s in zip(expected, got, strict=True)]
        os.replace(made[0], target)
        os.replace(made[1], weights)
    size = target.stat().st_size + weights.stat().st_size
    return NcnnFiles(target, weights, size, half_precision, compare_answers(expected, alike))


def _like(expected: Array, got: Array) -> Array:
    """`got` with the batch axis that ncnn does not have."""
    return got.reshape(expected.shape) if got.size == expected.size else got


def _shape(array: Array) -> str:
    kind = {"float32": "f32", "float16": "f16", "int64": "i64", "int32": "i32"}.get(str(array.dtype), "f32")
    return f"[{','.join(map(str, array.shape))}]{kind}"


def _answers(made: tuple[Path, Path], feeds: Sequence[Feed], source: Path) -> list[list[Array]]:
    """ncnn's outputs for each of `feeds`; it has no batch axis."""
    folder = made[0].parent
    cases = {
        f"{case}:{place}": array[0] for case, feed in enumerate(feeds) for place, array in enumerate(feed.values())
    }
    np.savez(folder / "inputs.npz", **cases)
    command = [sys.executable, "-c", _RUN, str(made[0]), str(made[1]), "inputs.npz", "answers.npz"]
    _run(command, folder, source, "ncnn cannot run the model")
    with np.load(folder / "answers.npz") as found:
        counts = len(found.files) // len(feeds)
        return [[found[f"{case}:{place}"] for place in range(counts)] for case in range(len(feeds))]


def _run(command: list[str], folder: Path, source: Path, reason: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadOnnxFile(source, f"{reason} ({error})") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise BadOnnxFile(source, f"{reason} ({lines[-1][:200] if lines else f'exit code {done.returncode}'})")
