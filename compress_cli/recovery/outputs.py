"""How far the outputs of two networks are apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from pruners.outputs import squares


def output_error(pairs: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> float:
    """Return the squared distance of outputs relative to the spread of the original's, averaged over outputs.

    Args:
        pairs: per batch (original outputs, compressed outputs), each (batch, ...).
    """
    sums: list[list[Tensor]] = []
    count = 0
    for originals, found in pairs:
        count += originals[0].shape[0] if originals and originals[0].dim() else 1
        parts = [squares(a, b) for a, b in zip(originals, found, strict=True)]
        sums = (
            parts
            if not sums
            else [[x + y for x, y in zip(a, b, strict=True)] for a, b in zip(sums, parts, strict=True)]
        )
    errors = []
    for distance, square, total in sums:
        spread = float(square - total.square().sum() / count)
        # outputs that are the same for all images have no spread: their size is the measure then
        errors.append(float(distance) / max(spread, 1e-12 * float(square), 1e-300))
    return sum(errors) / max(len(errors), 1)
