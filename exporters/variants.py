"""One ONNX file in every form that `--weights` names, each compared with the dense file at a stated tolerance."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters import files
from exporters.allocation import Allocation, allocate, uniform_error
from exporters.calibration import importance
from exporters.feeds import Comparison, Feed, compare, random_feeds
from exporters.int8 import Int8Result, Method, quantize_int8
from exporters.memory import release
from exporters.packing import TIERS, PackResult, pack
from exporters.unpacking import unpacks_to

WEIGHTS = ("dense", *TIERS, "packed-cb", "int8")
"""`packed-cb` chooses the bits of each layer; the others are the tiers of `packing` and static int8."""

AS_FOUR_BITS = "packed-cb4"
"""The error that `packed-cb` may have where no budget is given: that of four bits in every layer."""


ROUNDING = 1e-6
"""Relative difference of float32 outputs that another order of the same additions explains."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A written file and its proof.

    Attributes:
        tolerance: largest accepted relative root mean square difference of an output from the dense file.
        comparison: what was measured against the dense file; `ok`: within the tolerance.
        synthetic: whether calibration and comparison inputs were made up.
    """

    weights: str
    files: tuple[Path, ...]
    bytes: int
    dense_bytes: int
    tolerance: float
    comparison: Comparison
    ok: bool
    synthetic: bool
    packing: PackResult | None = None
    int8: Int8Result | None = None
    allocation: Allocation | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        parts = {
            name: part.to_dict() if part is not None else None
            for name, part in (("packing", self.packing), ("int8", self.int8), ("allocation", self.allocation))
        }
        plain = {"files": [str(path) for path in self.files], "comparison": self.comparison.to_dict()}
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**own, **plain, **parts, "notes": list(self.notes)}


def tolerance(weights: str) -> float:
    """Largest accepted relative root mean square output error of a form; 0 means weights equal in every bit.

    Then the outputs are equal in every bit, too, unless ONNX Runtime, which sees constants at another moment, fuses
    the packed graph otherwise (an addition into a convolution, for one): up to `ROUNDING`.

    Twice and more of what was measured (benchmarks/results): fp16 0.2 %; 8-bit uniform codes 3 %, twice that for each
    bit less; 4-bit codebooks 50 %, likewise; int8 30 %. The logits of CIFAR ResNet-56 at 50 % sparsity move by 16 % of
    their size with 4-bit codebooks and with int8, its accuracy by less than half a point (those of a ResNet-20 that was
    decomposed, cut and pruned before by 32 %): the limit catches broken files, and only an evaluation on data tells the
    accuracy.
    """
    if weights in ("dense", "packed"):
        return 0.0
    if weights == "packed-fp16":
        return 2e-3
    if weights == "int8":
        return 0.3
    code = weights.removeprefix("packed-")
    if code == "cb":
        return 0.3
    if code.startswith("cb"):
        return min(1.0, 0.5 * 2.0 ** (4 - int(code[2:])))
    return min(1.0, 0.03 * 2.0 ** (8 - int(code[1:])))


def write_variant(
    dense: Path,
    target: Path,
    weights: str,
    *,
    feeds: Sequence[Feed] | None = None,
    held_out: Sequence[Feed] | None = None,
    max_error: float | None = None,
    method: Method = "minmax",
    reduce_range: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Variant:
    """Write `dense` to `target` in the form `weights` and compare the two.

    Args:
        dense: a plain ONNX file.
        target: the file to write; not `dense`.
        weights: one of `WEIGHTS`.
        feeds: calibration inputs for codebooks and `int8`; None: seeded random ones for `packed-cb` and `int8`, and
            codebooks of the other tiers fitted to the weights alone. (Fitted to what the inputs make matter, 4-bit
            codebooks keep a ResNet-56 with 50 % zeros within its own accuracy: `benchmarks/results/tiers_cifar.json`.)
        held_out: inputs to compare on; None: `feeds`, or other random ones.
        max_error: relative output error that `packed-cb` may have; None: that of four bits everywhere.
        method: calibration of `int8`.
        reduce_range: 7-bit int8 weights.
        say: told what is going on.

    Raises:
        BadOnnxFile: the file cannot be read, run or quantised.
        ValueError: an unknown form, or a budget that eight bits do not meet.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"unknown weights {weights!r}; one of {', '.join(WEIGHTS)}")
    gc.collect()  # an exported program refers to itself, and holds another copy of the network
    release()
    synthetic = feeds is None
    if feeds is None:
        feeds = random_feeds(dense, 4, batch=2) if weights in ("packed-cb", "int8") else []
    packing: PackResult | None = None
    int8: Int8Result | None = None
    written: tuple[Path, ...] = (target,)
    chosen: Allocation | None = None
    notes: list[str] = []
    if weights == "dense":
        written = files.copy(dense, target, files.read(dense))
    elif weights == "int8":
        say("Calibrating int8")
        int8 = quantize_int8(dense, target, feeds, method=method, reduce_range=reduce_range)
        notes += _int8_notes(int8, synthetic)
    elif weights == "packed-cb":
        say("Choosing the bits of each layer")
        chosen, matters = choose_bits(dense, feeds, max_error)
        packing = pack(dense, target, tier="packed-cb8", codes=chosen.codes, importance=matters)
    else:
        aware = weights.startswith("packed-cb") and not synthetic
        packing = pack(dense, target, tier=weights, importance=importance(dense, feeds) if aware else None)
    if weights != "dense":
        say("Comparing with the dense file")
    inputs = held_out or feeds or random_feeds(dense, 3, batch=2, seed=1)
    found = compare(dense, target, inputs)
    if not found.finite:
        notes.append("outputs of the dense file are not finite (NaN or infinity): the comparison proves little")
    limit = tolerance(weights)
    rounded = not limit and not _same_numbers(found) and found.rms_rel <= ROUNDING and unpacks_to(target, dense)
    if rounded:
        notes.append(
            f"the runtime fuses the packed file in another order: its outputs differ by {found.rms_rel:.1e} of their "
            "size, although the weights are the same bit for bit"
        )
    if packing:
        notes += packing.notes
    if packing or int8:
        written = packing.files if packing else int8.packing.files if int8 else written
    return Variant(
        weights=weights,
        files=written,
        bytes=sum(os.path.getsize(path) for path in written),
        dense_bytes=os.path.getsize(dense),
        tolerance=limit,
        comparison=found,
        ok=found.rms_rel <= limit if limit else _same_numbers(found) or rounded,
        synthetic=synthetic,
        packing=packing,
        int8=int8,
        allocation=chosen,
        notes=tuple(notes),
    )


def choose_bits(
    dense: Path, feeds: Sequence[Feed], max_error: float | None = None
) -> tuple[Allocation, Mapping[str, Any]]:
    """Bits per layer with plain and with activation-aware codebooks; the smaller of the two, and its importance.

    Raises:
        ValueError: eight bits everywhere exceed `max_error`.
    """
    budget = uniform_error(dense, feeds, AS_FOUR_BITS).rms_rel if max_error is None else max_error
    matters = importance(dense, feeds)
    tries = [(allocate(dense, feeds, budget, weight), weight) for weight in ({}, matters)]
    return min(tries, key=lambda found: (found[0].value_bytes, found[0].measured.rms_rel))


def _same_numbers(found: Comparison) -> bool:
    """Equal bits, or equal but for the sign of zeros (negative zeros among the weights become positive)."""
    return found.identical or found.max_rel == 0.0


def _int8_notes(result: Int8Result, synthetic: bool) -> list[str]:
    notes = []
    if synthetic:
        notes.append("int8 was calibrated on random inputs: give real ones with --calib before you use it")
    if not result.fusion.complete:
        left = ", ".join(f"{count} {kind}" for kind, count in result.fusion.float.items())
        notes.append(f"ONNX Runtime leaves some products in float: {left or 'no product at all was quantised'}")
    return notes


__all__ = ["AS_FOUR_BITS", "WEIGHTS", "Variant", "choose_bits", "tolerance", "write_variant"]
