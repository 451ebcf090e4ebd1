"""How many weights each layer loses when the others make up for it: one price for the whole network.

On the original's own inputs each layer goes down in steps by the optimal brain surgeon (`surgeon.py`), and what is
missed after compensation, times how much the network's outputs feel it, is noted at each step: a curve from zeros to
added error. Errors of layers are taken as independent, so curves add up, and the least sum for a total number of zeros
takes the cheapest pieces of the curves' lower convex hulls. Which weights go is decided later, layer by layer, on what
the compressed network hands on (`recover(..., zeros=)`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress_cli.recovery.errors import CannotTrace, DoNotMatch
from compress_cli.recovery.images import arrange
from compress_cli.recovery.jobs import output_offset
from compress_cli.recovery.normal import NormalEquations, ridge_changes
from compress_cli.recovery.routine import SENSITIVE_IMAGES, RecoveryOptions
from compress_cli.recovery.sampling import sampled_patches
from compress_cli.recovery.sensitivity import sensitivities
from compress_cli.recovery.stream import Stream
from compress_cli.recovery.surgeon import RIDGE, choose_support
from compress_cli.recovery.trace import Call, Traced, trace

LEVELS = (0.3, 0.5, 0.65, 0.75, 0.82, 0.87, 0.91, 0.94, 0.96, 0.975, 0.985, 0.993)
"""Shares of zeros at which a layer's error is noted."""
ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Curve:
    """What removing weights from one layer adds to the squared error of the network's outputs.

    Attributes:
        name: of the weight.
        weights: how many it has.
        zeros: numbers of zeros, ascending, from those that are there already.
        errors: at each of them, after compensation.
    """

    name: str
    weights: int
    zeros: tuple[int, ...]
    errors: tuple[float, ...]


def solvable(dense: nn.Module, batches: Sequence[Tensor | Sequence[Tensor]]) -> list[str]:
    """Names of the weights that layers of the traced network multiply by, in order of their first use.

    Raises:
        CannotTrace: as in `recover`.
    """
    first = batches[0]
    device = next(dense.parameters()).device
    example = tuple(part[:1].to(device) for part in ((first,) if isinstance(first, Tensor) else first))
    return list(dict.fromkeys(call.weight for call in trace(dense, example, "original").calls()))


def error_curves(
    dense: nn.Module,
    batches: Sequence[Tensor | Sequence[Tensor]],
    names: Sequence[str],
    *,
    seed: int = 0,
    options: RecoveryOptions | None = None,
    on_step: Callable[[int, int, str], None] | None = None,
) -> list[Curve]:
    """Return one curve per weight that may lose entries.

    Args:
        dense: the network; not changed.
        batches: unlabelled images.
        names: weights to look at.
        seed, options, on_step: as in `recover`.

    Raises:
        NoImages, CannotTrace: as in `recover`.
        DoNotMatch: a weight that no layer multiplies by.
    """
    options = options or RecoveryOptions()
    images = arrange(batches, options.batch_size, options.holdout, seed)
    device = next(dense.parameters()).device
    parts = [tuple(part.to(device) for part in batch) for batch in images.batches[: images.fitted]]
    traced = trace(dense, parts[0], "original")
    feelings = sensitivities(traced, parts[: max(SENSITIVE_IMAGES // images.size, 1)], seed)
    if not feelings:
        raise CannotTrace("original", "none of its outputs has a derivative, which prices need")
    calls: dict[str, list[Call]] = {}
    for call in traced.calls():
        calls.setdefault(call.weight, []).append(call)
    missing = sorted(set(names) - set(calls))
    if missing:
        raise DoNotMatch(f"zeros are asked of {', '.join(missing[:3])}, which no layer multiplies by")
    wanted = [name for name in calls if name in set(names)]
    stream = Stream(traced, parts, options.memory, device)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for place, name in enumerate(wanted):
        if on_step is not None:
            on_step(place, len(wanted), name)
        stream.settle({call.node for later in wanted[place:] for call in calls[later]})
        sums = _gram(traced, stream, calls[name], options, generator)
        found[name] = _curve(traced, calls[name], sums, feelings.get(name))
    return [found[name] for name in names]


@torch.no_grad()
def _gram(
    traced: Traced, stream: Stream, calls: list[Call], options: RecoveryOptions, generator: torch.Generator
) -> NormalEquations:
    """Sums over the inputs of all calls of one weight; nothing is missed yet."""
    matrix = calls[0].geometry.matrix(traced.tensors()[calls[0].weight].detach())
    constant = output_offset(traced, calls) is not None
    groups, columns, outputs = matrix.shape[0], matrix.shape[1] + constant, matrix.shape[2]
    sums = NormalEquations.empty(groups, columns, outputs, matrix.device)
    limit = -(-max(options.rows_per_unknown * columns, ROWS) // len(stream))
    for index in range(len(stream)):
        for call in calls:
            patches = sampled_patches(stream, index, call, limit=limit, constant=constant, generator=generator)
            sums.add(patches, patches.new_zeros(groups, patches.shape[1], outputs))
    return sums


@torch.no_grad()
def _curve(traced: Traced, calls: list[Call], sums: NormalEquations, feeling: Tensor | None) -> Curve:
    weight = traced.tensors()[calls[0].weight].detach()
    matrix = calls[0].geometry.matrix(weight.double())
    columns = matrix.shape[1]
    support = matrix != 0
    weights, start = matrix.numel(), int((~support).sum())
    fixed = sums.gram.shape[1] - columns
    if fixed:
        matrix = torch.cat([matrix, matrix.new_zeros(matrix.shape[0], 1, matrix.shape[2])], 1)
        support = torch.cat([support, torch.ones_like(support[:, :1])], 1)
    felt = torch.ones_like(sums.missed) if feeling is None else feeling.to(sums.missed)
    zeros, errors = [start], [0.0]
    for level in (*LEVELS, 1.0):
        count = round(level * weights)
        if count <= zeros[-1]:
            continue
        support = choose_support(sums, matrix, support, count, felt, fixed=fixed, steps=1)
        shifted = sums.shifted(torch.where(support, 0.0, -matrix))
        left = shifted.errors(ridge_changes(shifted, support, (RIDGE,))[0])
        zeros.append(count)
        errors.append(max(float((left * felt).sum()) / max(sums.rows, 1), errors[-1]))
    return Curve(calls[0].weight, weights, tuple(zeros), tuple(errors))


def share_zeros(curves: Sequence[Curve], total: int, floor: int = 0) -> dict[str, int]:
    """Split a number of zeros over layers so that the errors add up to the least.

    Args:
        curves: of the layers.
        total: zeros in all; those that are there already are not taken back.
        floor: weights that every layer keeps at least.

    Returns:
        Zeros of each layer; fewer in all only where the floor leaves no more.
    """
    pieces = []
    for place, curve in enumerate(curves):
        most = max(curve.weights - floor, curve.zeros[0])
        points = [(z, e) for z, e in zip(curve.zeros, curve.errors, strict=True)]
        hull = _hull(points)
        for (z0, e0), (z1, e1) in itertools.pairwise(hull):
            size = min(z1, most) - z0
            if size > 0:
                pieces.append(((e1 - e0) / (z1 - z0), place, size))
    found = [curve.zeros[0] for curve in curves]
    left = total - sum(found)
    for _, place, size in sorted(pieces):
        taken = min(size, max(left, 0))
        found[place] += taken
        left -= taken
    return {curve.name: count for curve, count in zip(curves, found, strict=True)}


def _hull(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The lower convex hull of points in ascending order."""
    hull: list[tuple[int, float]] = []
    for point in points:
        while len(hull) > 1 and _above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _above(a: tuple[int, float], b: tuple[int, float], c: tuple[int, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
