"""The form in which an ONNX file stores its weights (`--weights`): written, compared with the dense file, judged."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_cli.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from exporters.variants import Variant

TIERS = tuple(f"packed-{code}{bits}" for code in ("q", "cb") for bits in range(2, 9))
WEIGHTS = ("auto", "dense", "packed", "packed-fp16", *TIERS, "packed-cb", "int8")
EXACT = ("auto", "dense", "packed")
"""Forms that change no number."""


def check_known(flag: str, value: str, valid: Sequence[str]) -> None:
    """Refuse a name that is not valid, with the closest ones.

    Raises:
        UsageError: always, unless the value is valid.
    """
    if value not in valid:
        close = difflib.get_close_matches(value, valid, n=2)
        raise UsageError(
            f"{flag} {value!r} is unknown",
            f"valid: {', '.join(valid)}" + (f" (did you mean {' or '.join(close)}?)" if close else ""),
        )


def write_form(
    dense: Path,
    target: Path,
    weights: str,
    *,
    feeds: Any = None,
    held_out: Any = None,
    max_error: float | None = None,
    calibration: str = "minmax",
    reduce_range: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Variant:
    """Write `dense` in the wanted form to `target`; `auto` packs only where that makes the file smaller.

    Raises:
        UsageError: an error budget that eight bits do not meet.
        VerificationError: the outputs differ by more than the form may change them, or the weights do not unpack
            while the file is loaded.
    """
    from exporters.variants import write_variant

    wanted = "packed" if weights == "auto" else weights
    try:
        found = write_variant(
            dense,
            target,
            wanted,
            feeds=feeds,
            held_out=held_out,
            max_error=max_error,
            method=calibration,  # type: ignore[arg-type]
            reduce_range=reduce_range,
            say=say,
        )
    except ValueError as error:
        raise UsageError(str(error), "allow more with --max-error, or use --weights packed-fp16") from error
    if weights == "auto" and found.bytes >= 0.99 * found.dense_bytes:
        why = next((note for note in found.notes if note.startswith("opset")), "too few zeros")
        found = write_variant(dense, target, "dense")
        reason = f"dense weights: packing would not make the file smaller ({why})"
        found = dataclasses.replace(found, notes=(*found.notes, reason))
    elif wanted == "packed" and found.bytes >= found.dense_bytes:
        reason = "the packed file is not smaller than the dense one (too few zeros)"
        found = dataclasses.replace(found, notes=(*found.notes, reason))
    _demand(found)
    return found


def _demand(variant: Variant) -> None:
    """The proofs that a file must pass before it is kept."""
    found = variant.comparison
    if not variant.ok:
        allowed = f"{variant.tolerance:.2%}" if variant.tolerance else "no difference"
        share = f"{found.rms_rel:.2%}" if found.rms_rel >= 1e-4 else f"{found.rms_rel:.1e}"
        raise VerificationError(
            f"with --weights {variant.weights} the outputs differ by {share} of their size, allowed: "
            f"{allowed}; no file was written",
            "use a form with more bits, or calibrate on real images with --calib",
        )
    packing = variant.packing or (variant.int8.packing if variant.int8 else None)
    if packing is not None and packing.folded is False:
        raise VerificationError(
            "ONNX Runtime does not unpack the weights while loading, so every run would be slower; no file was written",
            "use --weights dense, and report the network",
        )
