"""Bits of each layer's codebook: the smallest file whose output error stays within a budget.

Let e_t(b)^2 be the squared output error of coding tensor t alone with b bits. Errors of different tensors add up (they
are nearly uncorrelated), and e_t(b)^2 is proportional to the codebook's own (weighted) squared error D_t(b). One run
per tensor gives the factor; bits are then bought where a byte saves the most error, until the prediction meets the
budget; the true error of the whole is measured, and the target corrected where the prediction was off.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from exporters import codebook, files
from exporters.errors import BadOnnxFile, first_line
from exporters.feeds import Comparison, Feed, answers, compare_answers
from exporters.packing import pack
from exporters.weights import Weight, weights

Array = NDArray[Any]

BITS = (2, 3, 4, 5, 6, 7, 8)
_PROBE_BITS = 3
_PROBE_INPUTS = 2
_CORRECTIONS = 5


@dataclass(frozen=True, slots=True)
class Allocation:
    """Bits by tensor name, and the output error (relative root mean square) that the whole file then has.

    Attributes:
        budget: the error that was allowed.
        measured: the whole coded file against the exact one on the calibration inputs.
        value_bytes: codes and codebooks.
        weighted: whether the codebooks are fitted to what the inputs make matter.
    """

    bits: Mapping[str, int]
    budget: float
    measured: Comparison
    value_bytes: int
    weighted: bool
    runs: int

    @property
    def codes(self) -> dict[str, str]:
        """Value codes for `packing.pack`."""
        return {name: f"cb{bits}" for name, bits in self.bits.items()}

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "bits": dict(self.bits)}


def uniform_error(
    source: Path, feeds: Sequence[Feed], tier: str, importance: Mapping[str, Array] | None = None
) -> Comparison:
    """Output error of `tier` on the calibration inputs."""
    return _measure(source, feeds, answers(source, feeds), tier, {}, importance or {})


def allocate(
    source: Path, feeds: Sequence[Feed], budget: float, importance: Mapping[str, Array] | None = None
) -> Allocation:
    """Choose the bits of every product weight so that the output error is at most `budget`.

    Args:
        source: the exact file.
        feeds: calibration inputs, at least one.
        budget: relative root mean square error of the worst output, such as 0.05.
        importance: see `calibration.importance`; None: every element matters the same.

    Raises:
        BadOnnxFile: the file cannot be read or run.
        ValueError: not even the most bits meet the budget.
    """
    weighted = importance or {}
    model = files.read(source)
    found = [w for w in weights(model)[0] if w.product and w.array.dtype == np.float32 and np.any(w.array)]
    tables = {w.name: _distortions(w, weighted.get(w.name)) for w in found}
    exact = answers(source, feeds)
    factors = _factors(source, feeds, exact, found, tables, weighted)
    target, runs = budget, len(found)
    best: tuple[dict[str, int], Comparison] | None = None
    for _ in range(_CORRECTIONS):
        bits = _buy(found, tables, factors, target)
        measured = _measure(source, feeds, exact, "packed-cb8", {n: f"cb{b}" for n, b in bits.items()}, weighted)
        runs += 1
        if measured.rms_rel <= budget:
            best = bits, measured
            if measured.rms_rel > 0.93 * budget or all(b == BITS[0] for b in bits.values()):
                break
        elif all(b == BITS[-1] for b in bits.values()) and best is None:
            raise ValueError(f"8 bits everywhere give an output error of {measured.rms_rel:.2%}, above {budget:.2%}")
        target *= budget * 0.97 / measured.rms_rel
    if best is None:
        bits = dict.fromkeys(tables, BITS[-1])
        best = bits, _measure(source, feeds, exact, "packed-cb8", {}, weighted)
    size = sum(_cost(int(np.count_nonzero(w.array)), 0, best[0][w.name]) for w in found)
    return Allocation(best[0], budget, best[1], round(size), bool(weighted), runs)


def _distortions(weight: Weight, importance: Array | None) -> dict[int, float]:
    """(Weighted) squared error of the codebook of each width, on at most 200,000 of the non-zero values."""
    flat = weight.array.reshape(-1)
    places = np.flatnonzero(flat)
    step = -(-len(places) // 200_000)
    values = flat[places[::step]].astype(np.float64)
    mass = np.ones(len(values)) if importance is None else importance.reshape(-1)[places[::step]]
    table = {}
    for bits in BITS:
        centres = codebook.fit(values, 2**bits, mass)
        error = values - centres[codebook.assign(values, centres)]
        table[bits] = float((mass * error**2).sum()) * step
    return table


def _factors(
    source: Path,
    feeds: Sequence[Feed],
    exact: list[list[Array]],
    found: list[Weight],
    tables: Mapping[str, Mapping[int, float]],
    importance: Mapping[str, Array],
) -> dict[str, float]:
    """Squared output error by squared codebook error, from one run per tensor with only that one coded."""
    factors = {}
    few = min(len(feeds), _PROBE_INPUTS)
    with _Swapper(source) as swapper:
        for weight in found:
            coded = _coded(weight, _PROBE_BITS, importance.get(weight.name))
            error = compare_answers(exact[:few], swapper.run(feeds[:few], {weight.name: coded})).rms_rel
            own = tables[weight.name][_PROBE_BITS]
            factors[weight.name] = error**2 / own if own else 0.0
    return factors


def _coded(weight: Weight, bits: int, importance: Array | None) -> Array:
    flat = weight.array.reshape(-1)
    kept = flat != 0
    centres = codebook.fit(flat[kept], 2**bits, None if importance is None else importance.reshape(-1)[kept])
    coded = np.zeros_like(flat)
    coded[kept] = centres[codebook.assign(flat[kept], centres)]
    return coded.reshape(weight.array.shape)


class _Swapper:
    """Runs a file with some of its weights replaced, without loading it anew."""

    def __init__(self, source: Path) -> None:
        model = files.read(source)
        self._defaults = {w.name for w in weights(model)[0] if w.product}
        taken = {value.name for value in model.graph.input}
        for tensor in model.graph.initializer:  # an initializer among the inputs is a default that a run may replace
            if tensor.name in self._defaults and tensor.name not in taken:
                kind = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
                model.graph.input.append(helper.make_value_info(tensor.name, kind))
        model.ir_version = max(model.ir_version, 4)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "swap.onnx"
        files.write(model, path)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common class of their own
            raise BadOnnxFile(source, f"ONNX Runtime cannot load it: {first_line(error)}") from error

    def __enter__(self) -> _Swapper:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def run(self, feeds: Sequence[Feed], replaced: Mapping[str, Array]) -> list[list[Array]]:
        """Outputs for each of `feeds` with the weights in `replaced` in place of the file's."""
        return [[np.asarray(v) for v in self._session.run(None, {**feed, **replaced})] for feed in feeds]


def _buy(
    found: Sequence[Weight], tables: Mapping[str, Mapping[int, float]], factors: Mapping[str, float], target: float
) -> dict[str, int]:
    """Fewest bytes whose predicted error is within `target`: always the step that removes most error per byte."""
    counts = {w.name: int(np.count_nonzero(w.array)) for w in found}
    bits = dict.fromkeys(tables, BITS[0])
    total = sum(factors[name] * tables[name][BITS[0]] for name in bits)
    while total > target**2:
        steps = [
            (factors[name] * (tables[name][now] - tables[name][more]) / _cost(counts[name], now, more), name, more)
            for name, now in bits.items()
            for more in BITS
            if more > now
        ]
        if not steps:
            break
        _, name, more = max(steps)
        total -= factors[name] * (tables[name][bits[name]] - tables[name][more])
        bits[name] = more
    return bits


def _cost(count: int, now: int, more: int) -> float:
    """Further bytes: longer codes and a longer codebook."""
    return count * (more - now) / 8 + 4.0 * ((1 << more) - (1 << now))


def _measure(
    source: Path,
    feeds: Sequence[Feed],
    exact: list[list[Array]],
    tier: str,
    codes: Mapping[str, str],
    importance: Mapping[str, Array],
) -> Comparison:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "coded.onnx"
        pack(source, target, tier=tier, codes=codes, importance=importance, check=False)
        return compare_answers(exact, answers(target, feeds))
