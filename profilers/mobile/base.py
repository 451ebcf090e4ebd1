"""What every mobile runtime offers here: its packages, a converter that starts from ONNX, and a way to run its files.

Converters and other people's native code run in processes of their own, where a crash ends nothing else.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from profilers.errors import MeasurementFailed
from profilers.runners.processes import run
from profilers.runners.result import RunnerFailed

Array = NDArray[Any]
Inference = Callable[[Sequence[Array]], list[Array]]
"""Inputs in the order of the ONNX file, batch axis included -> outputs in its order, batch axis included."""

CONVERT_SECONDS = 900.0
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Signature:
    """Names and fixed shapes (batch 1) of the inputs and outputs of an ONNX file; `dtypes` of the inputs."""

    inputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    outputs: tuple[str, ...]
    out_shapes: tuple[tuple[int, ...], ...]


class MobileRuntime(Protocol):
    """One runtime.

    Attributes:
        name: on the command line.
        modules: import names it needs here; `install`: what to type to get them.
        suffixes: endings of the files of one model, the main one first.
        half: whether `convert` can store weights in half precision.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def modules(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def install(self) -> str: ...  # noqa: D102
    @property
    def suffixes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def half(self) -> bool: ...  # noqa: D102

    def convert(self, model: Path, signature: Signature, folder: Path, *, half: bool) -> tuple[Path, ...]:
        """Convert a plain ONNX file of fixed shapes; the files made in `folder`, in the order of `suffixes`.

        Raises:
            MeasurementFailed: the converter refuses the model.
        """
        ...

    def open(self, files: Sequence[Path], signature: Signature, threads: int) -> Inference:
        """Load the files with `threads` threads.

        Raises:
            MeasurementFailed: the runtime cannot load its own files.
        """
        ...


def missing(runtime: MobileRuntime) -> str | None:
    """None when the runtime can be used here, else which packages are not installed and what to type."""
    absent = [name for name in runtime.modules if importlib.util.find_spec(name.partition(".")[0]) is None]
    if not absent:
        return None
    return f"{runtime.title} needs {' and '.join(absent)}, not installed here ({runtime.install})"


def convert_in_process(code: str, arguments: Sequence[str], *, what: str) -> None:
    """Run Python `code` with `arguments` in a process of its own, this project importable.

    Raises:
        MeasurementFailed: it failed; with the last line it printed.
    """
    start = f"import sys; sys.path.append({str(_ROOT)!r})\n{code}"
    command = [sys.executable, "-P", "-c", start, *arguments]  # -P: a file ncnn.py in the user's folder is not imported
    try:
        run(command, timeout_s=CONVERT_SECONDS, what=what)
    except RunnerFailed as error:
        raise MeasurementFailed(refusal(what, error)) from error


def refusal(what: str, error: RunnerFailed) -> str:
    """One line: who refused, and the last thing it said."""
    lines = [line.strip() for line in error.log.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "Error" in line or "error" in line), lines[-1] if lines else "")
    return f"{what} refuses the model: {said[:240] or error.reason}"


def shaped(values: Sequence[Any], signature: Signature) -> list[Array]:
    """Outputs as float arrays in the shapes of the ONNX file; as they are where the sizes differ."""
    found = []
    for value, shape in zip(values, signature.out_shapes, strict=True):
        array = np.asarray(value)
        found.append(array.reshape(shape) if array.size == int(np.prod(shape)) else array)
    return found
