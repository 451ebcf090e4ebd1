"""Numeric proof of an export: every output of PyTorch and of ONNX Runtime on several inputs and batch sizes.

error = max|y_onnx - y_torch| / max|y_torch| per output. An output agrees when its error is at most `rtol`; only where
the reference is exactly zero does the absolute tolerance `atol` apply. Outputs that are zero, constant or not finite
prove nothing: they are named in the warnings and never pass in silence.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.detections import paired
from exporters.errors import first_line
from exporters.outputs import run_model

Level = Literal["disable", "basic", "extended", "all"]
Array = NDArray[Any]

WARN_ABOVE = 1e-5
RTOL = 1e-4
ATOL = 1e-6
_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


@dataclass(frozen=True, slots=True)
class Agreement:
    """One output on one input. For integer and boolean outputs `max_rel` is the share of different elements."""

    output: str
    input_index: int
    batch: int
    max_abs: float
    max_rel: float
    ok: bool


@dataclass(frozen=True, slots=True)
class Verification:
    """The proof: `ok` needs at least one comparison and no disagreement; read `warnings` before trusting it."""

    agreements: tuple[Agreement, ...]
    ok: bool
    rtol: float
    atol: float
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def max_abs(self) -> float:
        """The largest absolute difference of all outputs and inputs."""
        return max((a.max_abs for a in self.agreements), default=0.0)

    @property
    def max_rel(self) -> float:
        """The largest relative difference of all outputs and inputs."""
        return max((a.max_rel for a in self.agreements), default=0.0)


def session(
    model: str | os.PathLike[str] | bytes,
    threads: int = 1,
    level: Level = "all",
    optimized_path: str | os.PathLike[str] | None = None,
) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU with `threads` threads, silent; writes the optimised graph when given a path.

    Raises:
        onnxruntime's own exceptions when the file cannot be loaded.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level])
    if optimized_path is not None:
        options.optimized_model_filepath = os.fspath(optimized_path)
    source = model if isinstance(model, bytes) else os.fspath(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def verify(
    model: nn.Module,
    onnx_path: Path,
    example_inputs: tuple[Tensor, ...],
    *,
    input_names: Sequence[str],
    batches: Sequence[int] = (1, 3),
    seeds: Sequence[int] = (0, 1, 2),
    real_inputs: Sequence[tuple[Tensor, ...]] = (),
    rtol: float = RTOL,
    atol: float = ATOL,
    warn_above: float = WARN_ABOVE,
    threads: int = 1,
) -> Verification:
    """Compare `model` with the file it was exported to.

    Args:
        model: run in eval mode, left as it was.
        onnx_path: the exported file.
        example_inputs: give shapes, dtypes and ranges of the random inputs.
        input_names: names of the inputs in the file, in the order of `example_inputs`.
        batches: batch sizes; the first one is used twice or more, each other one once. A file with a fixed batch is
            compared at that batch only.
        seeds: one random input for each (at least as many as `batches`).
        real_inputs: further inputs, compared before the random ones.
        rtol: largest accepted relative error.
        atol: largest accepted absolute error where the reference is exactly zero.
        warn_above: relative error from which an agreement is mentioned in the warnings.
        threads: of ONNX Runtime.

    Raises:
        ValueError: fewer seeds than batches.
    """
    if len(seeds) < len(batches):
        raise ValueError(f"{len(batches)} batch sizes need at least as many seeds, not {len(seeds)}")
    try:
        runner = session(onnx_path, threads)
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        return _failed(rtol, atol, f"ONNX Runtime cannot load the file: {first_line(error)}")
    free = _free_batch(runner, input_names)
    notes: list[str] = []
    pairs: list[_Pair] = []
    for inputs in [*real_inputs, *_random_cases(example_inputs, free, batches, seeds, notes)]:
        pair = _run_both(model, runner, inputs, input_names, notes, rtol)
        if isinstance(pair, str):
            return _failed(rtol, atol, pair)
        if pair is not None:
            pairs.append(pair)
    agreements = tuple(agreement for i, pair in enumerate(pairs) for agreement in _compare(i, pair, rtol, atol))
    return Verification(
        agreements=agreements,
        ok=bool(agreements) and all(agreement.ok for agreement in agreements),
        rtol=rtol,
        atol=atol,
        warnings=tuple(_weak(pairs) + _large(agreements, warn_above)),
        notes=tuple(dict.fromkeys(notes)),
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    """Outputs of both sides on one input, in the same order."""

    batch: int
    names: tuple[str, ...]
    expected: tuple[Array, ...]
    got: tuple[Array, ...]


def _failed(rtol: float, atol: float, reason: str) -> Verification:
    return Verification((), ok=False, rtol=rtol, atol=atol, warnings=(reason,))


def _free_batch(runner: onnxruntime.InferenceSession, input_names: Sequence[str]) -> list[bool]:
    """Per input: whether the file leaves dimension 0 free."""
    shapes = {value.name: value.shape for value in runner.get_inputs()}
    return [bool(shapes.get(name)) and not isinstance(shapes[name][0], int) for name in input_names]


def _random_cases(
    example: tuple[Tensor, ...], free: Sequence[bool], batches: Sequence[int], seeds: Sequence[int], notes: list[str]
) -> list[tuple[Tensor, ...]]:
    """One random input per seed: first all at the first batch size, the last ones at the other sizes."""
    sizes = [*[batches[0]] * (len(seeds) - len(batches) + 1), *batches[1:]]
    if not any(free):
        notes.append("the file has a fixed batch: compared at that batch only")
    return [random_inputs(example, seed, size, free) for seed, size in zip(seeds, sizes, strict=True)]


def random_inputs(
    example: tuple[Tensor, ...], seed: int, batch: int | None = None, free: Sequence[bool] | None = None
) -> tuple[Tensor, ...]:
    """Seeded inputs like `example`: normal floats (uniform where the example lies in 0..1), integers in its range.

    `batch` replaces dimension 0 of the inputs marked in `free`.
    """
    generator = torch.Generator().manual_seed(seed)
    marks = free if free is not None else [True] * len(example)
    return tuple(
        _random_like(tensor, batch if mark else None, generator) for tensor, mark in zip(example, marks, strict=True)
    )


def _random_like(tensor: Tensor, batch: int | None, generator: torch.Generator) -> Tensor:
    shape = tuple(tensor.shape)
    if batch is not None and shape:
        shape = (batch, *shape[1:])
    if tensor.dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool().to(tensor.device)
    if not tensor.is_floating_point():
        low, high = (int(tensor.min()), int(tensor.max())) if tensor.numel() else (0, 1)
        return torch.randint(low, high + 1, shape, generator=generator).to(tensor)
    unit = bool(tensor.numel()) and float(tensor.min()) >= 0 and float(tensor.max()) <= 1 and bool(tensor.any())
    random = torch.rand if unit else torch.randn
    return random(shape, generator=generator).to(tensor)


def _run_both(
    model: nn.Module,
    runner: onnxruntime.InferenceSession,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    notes: list[str],
    rtol: float,
) -> _Pair | str | None:
    """Outputs of both sides; a reason when the file is wrong; None (and a note) when PyTorch itself refuses."""
    batch = inputs[0].shape[0] if inputs and inputs[0].dim() else 1
    try:
        expected = run_model(model, inputs)
    except Exception as error:  # the user's own code: any class
        notes.append(f"not compared at batch {batch}: PyTorch itself fails there ({first_line(error)})")
        return None
    known = {value.name for value in runner.get_inputs()}
    feed = {n: t.cpu().numpy() for n, t in zip(input_names, inputs, strict=True) if n in known}
    try:
        got = runner.run(None, feed)
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        return f"ONNX Runtime fails at batch {batch}, where PyTorch does not: {first_line(error)}"
    if len(got) != len(expected):
        return f"the file has {len(got)} outputs, the model {len(expected)}"
    names, arrays = tuple(expected), tuple(_array(t) for t in expected.values())
    both = paired(names, arrays, [np.asarray(array) for array in got], rtol)
    notes += both.notes()
    return _Pair(batch, names, both.expected, both.got)


def _array(tensor: Tensor) -> Array:
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: Array = tensor.resolve_conj().resolve_neg().numpy()
    return array


def _compare(index: int, pair: _Pair, rtol: float, atol: float) -> list[Agreement]:
    rows = []
    for name, expected, got in zip(pair.names, pair.expected, pair.got, strict=True):
        max_abs, max_rel = difference(expected, got)
        ok = max_rel <= rtol or (not np.any(expected) and max_abs <= atol)
        rows.append(Agreement(name, index, pair.batch, max_abs, max_rel, bool(ok)))
    return rows


def difference(expected: Array, got: Array) -> tuple[float, float]:
    """(max|got - expected|, the same relative to max|expected|); inf where shapes or non-finite places differ.

    Integers and booleans: (largest difference, share of different elements). Nothing to compare: (0, 0).
    """
    if expected.shape != got.shape:
        return float("inf"), float("inf")
    if not expected.size:
        return 0.0, 0.0
    left, right = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(left)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True) or not np.isfinite(right[finite]).all():
        return float("inf"), float("inf")
    gap = np.abs(right[finite] - left[finite])
    max_abs = float(gap.max(initial=0.0))
    if not np.issubdtype(expected.dtype, np.floating):
        return max_abs, float(np.mean(gap > 0))
    scale = float(np.abs(left[finite]).max(initial=0.0))
    if scale == 0.0:
        return max_abs, 0.0 if max_abs == 0.0 else float("inf")
    return max_abs, max_abs / scale


def _weak(pairs: Sequence[_Pair]) -> list[str]:
    """Outputs whose agreement proves little, and why."""
    warnings: list[str] = []
    for position, name in enumerate(pairs[0].names if pairs else ()):
        values = [pair.expected[position] for pair in pairs if position < len(pair.expected)]
        reason = _weakness(values)
        if reason:
            warnings.append(f"weak proof for output {name!r}: {reason}")
    return warnings


def _weakness(values: Sequence[Array]) -> str | None:
    if all(value.size == 0 for value in values):
        return "it is empty on every input"
    if not all(np.isfinite(value).all() for value in values if value.dtype.kind == "f"):
        return "it is not finite (NaN or infinity): only where these are, and the finite rest, was compared"
    if not any(np.any(value) for value in values):
        return "it is zero on every input"
    if all(_same(values[0], value) for value in values[1:]):
        return "it does not depend on the input" if len(values) > 1 else "one input only"
    return None


def _same(first: Array, second: Array) -> bool:
    """Equal up to 1e-6 of the scale, on the part of the batch that both have."""
    if first.shape[1:] != second.shape[1:] or first.ndim != second.ndim:
        return False
    if first.ndim:
        rows = min(len(first), len(second))
        first, second = first[:rows], second[:rows]
    left, right = first.astype(np.float64), second.astype(np.float64)
    gap = np.abs(left - right).max(initial=0.0)
    return bool(gap <= 1e-6 * max(np.abs(left).max(initial=0.0), np.abs(right).max(initial=0.0)))


def _large(agreements: Sequence[Agreement], warn_above: float) -> list[str]:
    large = [a for a in agreements if a.max_rel > warn_above]
    if not large:
        return []
    worst = max(large, key=lambda a: a.max_rel)
    return [f"output {worst.output!r} differs by {worst.max_rel:.1e} of its largest value (input {worst.input_index})"]
