"""Inputs for ONNX files, and what a file answers to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from exporters.errors import BadOnnxFile, first_line
from exporters.memory import release
from exporters.verify import difference, session

Array = NDArray[Any]
Feed = Mapping[str, Array]

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_}
FREE_SIZE = 224  # for a free dimension that is not the batch


def open_session(path: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU.

    Raises:
        BadOnnxFile: it cannot load the file.
    """
    try:
        return session(path, threads)
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise BadOnnxFile(path, f"ONNX Runtime cannot load it: {first_line(error)}") from error


def random_feeds(path: Path, count: int = 8, *, batch: int = 1, seed: int = 0) -> list[dict[str, Array]]:
    """`count` seeded normal inputs (0 or 1 for integers) for the file; free dimensions: the batch, then 224.

    Raises:
        BadOnnxFile: the file cannot be loaded, or has an input of a type that cannot be made up.
    """
    generator = np.random.default_rng(seed)
    inputs = open_session(path).get_inputs()
    return [{value.name: _random(path, value, batch, generator) for value in inputs} for _ in range(count)]


def _random(path: Path, value: Any, batch: int, generator: np.random.Generator) -> Array:
    free = [FREE_SIZE if place else batch for place in range(len(value.shape))]
    shape = [size if isinstance(size, int) else free[place] for place, size in enumerate(value.shape)]
    if value.type in _FLOATS:
        return generator.standard_normal(shape).astype(_FLOATS[value.type])
    if value.type in _INTEGERS:
        return generator.integers(0, 2, shape).astype(_INTEGERS[value.type])
    raise BadOnnxFile(path, f"input {value.name} has the type {value.type}: give inputs of your own")


def answers(path: Path, feeds: Sequence[Feed], threads: int = 1) -> list[list[Array]]:
    """All outputs for each of `feeds`.

    Raises:
        BadOnnxFile: the file cannot be loaded, or fails on an input.
    """
    runner = open_session(path, threads)
    try:
        return [[np.asarray(value) for value in runner.run(None, dict(feed))] for feed in feeds]
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise BadOnnxFile(path, f"ONNX Runtime fails on an input: {first_line(error)}") from error


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two files differ on the same inputs, over all outputs.

    Attributes:
        max_rel: largest difference over largest value of the reference, the worst output.
        rms_rel: root of the mean squared difference over that of the reference, the worst output.
        same_top: share of rows of the first output whose largest entry is at the same place.
        identical: every bit of every output is equal.
        inputs: inputs compared.
        finite: whether every output of the reference is free of NaN and infinity; where it is not, the two files agree
            in where they are and in the finite rest (else the differences are infinite), which proves little.
    """

    max_rel: float
    rms_rel: float
    same_top: float
    identical: bool
    inputs: int
    finite: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def compare(reference: Path, other: Path, feeds: Sequence[Feed], threads: int = 1) -> Comparison:
    """Run both files on `feeds` (at least one).

    Raises:
        BadOnnxFile: one cannot be loaded or run, or they have different outputs.
    """
    expected = answers(reference, feeds, threads)
    release()
    got = answers(other, feeds, threads)
    release()
    if any(len(left) != len(right) for left, right in zip(expected, got, strict=True)):
        raise BadOnnxFile(other, f"it has other outputs than {reference}")
    return compare_answers(expected, got)


def compare_answers(expected: Sequence[Sequence[Array]], got: Sequence[Sequence[Array]]) -> Comparison:
    """The same for outputs at hand: one list of outputs for each input."""
    rows = _by_output(expected, got)
    pairs = [pair for row in rows for pair in row]
    tops = [_same_top(row[0], other[0]) for row, other in zip(expected, got, strict=True)]
    return Comparison(
        max_rel=max(difference(left, right)[1] for left, right in pairs),
        rms_rel=max(_rms(column) for column in zip(*rows, strict=True)),
        same_top=float(np.mean(np.concatenate(tops))),
        identical=all(left.dtype == right.dtype and left.tobytes() == right.tobytes() for left, right in pairs),
        inputs=len(expected),
        finite=all(np.isfinite(left).all() for left, _ in pairs if left.dtype.kind == "f"),
    )


def _by_output(expected: Sequence[Sequence[Array]], got: Sequence[Sequence[Array]]) -> list[list[tuple[Array, Array]]]:
    return [list(zip(row, other, strict=True)) for row, other in zip(expected, got, strict=True)]


def _rms(column: Sequence[tuple[Array, Array]]) -> float:
    """Relative root mean square difference of one output over all inputs."""
    if any(left.shape != right.shape for left, right in column):
        return float("inf")
    if any(difference(left, right)[0] == float("inf") for left, right in column):
        return float("inf")
    known = [(left[np.isfinite(left)].astype(np.float64), right[np.isfinite(left)]) for left, right in column]
    gap = sum(float(((left - right) ** 2).sum()) for left, right in known)
    size = sum(float((left**2).sum()) for left, _ in known)
    return float(np.sqrt(gap / size)) if size else (0.0 if not gap else float("inf"))


def _same_top(left: Array, right: Array) -> NDArray[np.bool_]:
    if left.shape != right.shape or not left.size:
        return np.zeros(1, np.bool_)
    rows = left.reshape(len(left), -1) if left.ndim > 1 else left.reshape(1, -1)
    same: NDArray[np.bool_] = rows.argmax(1) == right.reshape(rows.shape).argmax(1)
    return same
