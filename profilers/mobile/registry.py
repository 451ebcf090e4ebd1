"""The mobile runtimes by name, and the timing of ONNX files in them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from profilers.errors import MeasurementFailed
from profilers.latency import Comparison, Timed, compare_runs
from profilers.mobile.base import Array, MobileRuntime, Signature, missing
from profilers.mobile.executorch import ExecuTorch
from profilers.mobile.litert import LiteRt
from profilers.mobile.mnn import Mnn
from profilers.mobile.ncnn import Ncnn
from profilers.mobile.plain import plain
from profilers.ort import open_session

RUNTIMES: dict[str, MobileRuntime] = {
    runtime.name: runtime for runtime in (Ncnn(), Mnn(), Mnn(name="mnn-sparse", sparse=True), LiteRt(), ExecuTorch())
}
TOLERANCE = 0.01
"""Root mean square difference from ONNX Runtime, relative to the output, above which nothing is timed."""


def compare_mobile(runtime: str, models: Sequence[Path], *, threads: int = 1, budget_s: float = 6.0) -> Comparison:
    """Latency of one or two ONNX files (the original first), converted for `runtime` in single precision.

    Both are loaded before either is timed, and run in turn like `profilers.latency.compare`; a model whose outputs
    differ from ONNX Runtime's is not timed.

    Raises:
        MeasurementFailed: the runtime is not installed, its converter refuses a model, or the outputs are wrong.
    """
    chosen = RUNTIMES[runtime]
    absent = missing(chosen)
    if absent:
        raise MeasurementFailed(absent)
    names = ("original", "compressed")[-len(models) :]
    with tempfile.TemporaryDirectory(prefix=f"{runtime}-") as folder:
        timed = []
        for name, path in zip(names, models, strict=True):
            place = Path(folder) / name
            place.mkdir()
            timed.append(_timed(chosen, name, Path(path), place, threads))
        return compare_runs(timed, provider=chosen.title, threads=threads, batch=1, budget_s=budget_s)


def _timed(runtime: MobileRuntime, name: str, path: Path, folder: Path, threads: int) -> Timed:
    copy = folder / "plain.onnx"
    signature = plain(path, copy)
    files = runtime.convert(copy, signature, folder, half=False)
    inputs = seeded(signature)
    begin = time.perf_counter()
    once = runtime.open(files, signature, threads)
    load_ms = (time.perf_counter() - begin) * 1e3
    begin = time.perf_counter()
    found = once(inputs)
    first_ms = (time.perf_counter() - begin) * 1e3
    _check(runtime, path, dict(zip(signature.inputs, inputs, strict=True)), found)
    return Timed(name, partial(once, inputs), load_ms, first_ms)


def seeded(signature: Signature, seed: int = 0) -> list[Array]:
    """Normal inputs in the signature's shapes; ones for integers."""
    generator = np.random.default_rng(seed)
    return [
        (generator.standard_normal(shape) if dtype.startswith("float") else np.ones(shape)).astype(dtype)
        for shape, dtype in zip(signature.shapes, signature.dtypes, strict=True)
    ]


def _check(runtime: MobileRuntime, path: Path, feed: dict[str, Array], found: Sequence[Array]) -> None:
    for expected, got in zip(open_session(path).run(None, feed), found, strict=True):
        wanted = np.asarray(expected, dtype=np.float64)
        size = float(np.sqrt(np.mean(wanted**2))) or 1.0
        gap = float(np.sqrt(np.mean((wanted - got) ** 2))) / size if got.shape == wanted.shape else float("inf")
        if not gap <= TOLERANCE:
            raise MeasurementFailed(f"{runtime.title} computes other outputs for {path.name} ({gap:.1%} away)")
