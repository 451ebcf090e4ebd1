"""Latency in ncnn on this host, when the optional packages `ncnn` and `pnnx` are installed.

pnnx converts the ONNX file (full precision: `fp16=0`); ncnn runs it on the CPU, one image at a time (it has no batch
axis). The numbers say how a mobile runtime treats two models relative to each other, not how fast a phone is.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profilers.errors import MeasurementFailed
from profilers.latency import Comparison, Timed, compare_runs
from profilers.ort import open_session
from profilers.runners.processes import run
from profilers.runners.result import RunnerFailed

CONVERT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class NcnnFiles:
    """A converted model: `param` and `weights` files, and the shape (channels, height, width) of its input."""

    param: Path
    weights: Path
    shape: tuple[int, ...]


def available() -> str | None:
    """None when ncnn can be used here, else what is missing."""
    if importlib.util.find_spec("ncnn") is None:
        return "the package ncnn is not installed (pip install ncnn pnnx)"
    return None if _converter() else "the converter pnnx is not installed (pip install pnnx)"


def convert(path: Path, folder: Path) -> NcnnFiles:
    """Convert an ONNX file with one image input into `folder`.

    Raises:
        MeasurementFailed: ncnn is not there, the model has other inputs, or pnnx cannot convert it.
    """
    missing = available()
    if missing:
        raise MeasurementFailed(missing)
    inputs = open_session(path).get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in inputs[0].shape]
    if len(inputs) != 1 or len(shape) != 4:
        raise MeasurementFailed(f"ncnn is measured for one image input; {path.name} has {len(inputs)} input(s)")
    shape[0] = 1
    copy = folder / "model.onnx"
    shutil.copyfile(path, copy)
    size = f"inputshape=[{','.join(map(str, shape))}]f32"
    try:
        run([_converter(), str(copy), size, "fp16=0"], timeout_s=CONVERT_SECONDS, what="pnnx")
    except RunnerFailed as error:
        raise MeasurementFailed(f"pnnx cannot convert {path.name}: {error.reason} {error.log[-200:]}") from error
    files = NcnnFiles(folder / "model.ncnn.param", folder / "model.ncnn.bin", tuple(shape[1:]))
    if not files.param.is_file() or not files.weights.is_file():
        raise MeasurementFailed(f"pnnx wrote no ncnn model for {path.name}")
    return files


def inference(files: NcnnFiles, threads: int) -> Callable[[], Any]:
    """A function that runs one inference on a seeded input and returns the output as an array."""
    ncnn: Any = importlib.import_module("ncnn")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    if net.load_param(str(files.param)) or net.load_model(str(files.weights)):
        raise MeasurementFailed(f"ncnn cannot load {files.param.name}")
    image = np.random.default_rng(0).standard_normal(files.shape).astype(np.float32)

    def once() -> Any:
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(image))
        status, output = extractor.extract("out0")
        if status:
            raise MeasurementFailed(f"ncnn cannot run {files.param.name}")
        return np.array(output)

    return once


def compare_ncnn(models: Sequence[Path], *, threads: int = 1, budget_s: float = 6.0) -> Comparison:
    """Latency of one or two ONNX files (the original first) in ncnn, interleaved like `profilers.latency.compare`.

    Raises:
        MeasurementFailed: see `convert`.
    """
    names = ("original", "compressed")[-len(models) :]
    with tempfile.TemporaryDirectory(prefix="ncnn-") as folder:
        timed = []
        for name, path in zip(names, models, strict=True):
            (Path(folder) / name).mkdir()
            files = convert(path, Path(folder) / name)
            begin = time.perf_counter()
            once = inference(files, threads)
            load_ms = (time.perf_counter() - begin) * 1e3
            begin = time.perf_counter()
            once()
            timed.append(Timed(name, once, load_ms, (time.perf_counter() - begin) * 1e3))
        return compare_runs(timed, provider="ncnn", threads=threads, batch=1, budget_s=budget_s)


def _converter() -> str:
    """The pnnx program beside this Python, or on the path; "" when there is none."""
    beside = Path(sys.executable).with_name("pnnx")
    return str(beside) if beside.is_file() else shutil.which("pnnx") or ""
