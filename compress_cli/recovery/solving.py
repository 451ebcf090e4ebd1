"""Solving one layer: gather the normal equations from both streams, try ridges, write what held-out images approve."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.fx import Node

from compress_cli.recovery.jobs import Job, Use
from compress_cli.recovery.normal import NormalEquations, ridge_changes
from compress_cli.recovery.record import LayerRecovery
from compress_cli.recovery.residual import depends_on, has_layout, pull_back
from compress_cli.recovery.stream import Stream
from compress_cli.recovery.surgeon import choose_support

ROUNDING = 1e-11
"""An error below this share of the targets' size is rounding: the layer is right already."""

LEAST_WEIGHT = 0.1
"""Added to the weights of positions, whose mean is 1: what a few projections do not feel counts a little."""

FEWEST_ROWS = 20_000
"""So many rows are used however few the unknowns are."""


class Options(Protocol):
    """The part of `RecoveryOptions` that one layer needs."""

    @property
    def ridges(self) -> tuple[float, ...]: ...  # noqa: D102

    @property
    def rows_per_unknown(self) -> int: ...  # noqa: D102

    @property
    def columns(self) -> int: ...  # noqa: D102

    @property
    def sums(self) -> bool: ...  # noqa: D102


@dataclass(slots=True)
class Pair:
    """The two networks on the same batches.

    Attributes:
        active: batches that are used now, ascending.
        weights: per batch, how much each position of the original's layers counts; empty where all count the same.
    """

    original: Stream
    compressed: Stream
    active: tuple[int, ...]
    weights: Sequence[Mapping[Node, Tensor]] = ()


@dataclass(slots=True)
class Layer:
    """The weights of one job in matrix form, float64.

    Attributes:
        matrix: (groups, columns, outputs); the last column is the offset's where there is one.
        support: where it may be other than zero.
    """

    matrix: Tensor
    support: Tensor
    with_offset: bool

    @property
    def columns(self) -> int:
        """Columns without the offset's."""
        return self.matrix.shape[1] - self.with_offset


@dataclass(frozen=True, slots=True)
class Problem:
    """What one layer is solved with.

    Attributes:
        pair: both streams; values before this layer are final.
        job: what to solve for.
        corrects: for each use, whether it corrects the sum it ends in.
        fitted: how many of the batches are fitted; the others are held out.
        options: see `RecoveryOptions`.
        generator: chooses positions.
    """

    pair: Pair
    job: Job
    corrects: tuple[bool, ...]
    fitted: int
    options: Options
    generator: torch.Generator


@dataclass(frozen=True, slots=True)
class Removal:
    """Weights to remove from a layer before it is solved.

    Attributes:
        zeros: how many weights are zero afterwards.
        feeling: (groups, outputs per group), how much the network's outputs feel each channel.
    """

    zeros: int
    feeling: Tensor | None


class Spread:
    """Squared size of targets, and their squared distance from their means, over rows, groups and outputs."""

    def __init__(self, matrix: Tensor) -> None:
        self.square = matrix.new_zeros(matrix.shape[0], matrix.shape[2])
        self.total = torch.zeros_like(self.square)
        self.rows = 0

    def add(self, targets: Tensor) -> None:
        """Add targets (groups, rows, outputs)."""
        values = targets.double()
        self.square += values.square().sum(1)
        self.total += values.sum(1)
        self.rows += targets.shape[1]

    def value(self) -> float:
        """The distance from the means, never 0."""
        return max(float((self.square - self.total.square() / max(self.rows, 1)).sum()), 1e-300)


@torch.no_grad()
def solve_(
    pair: Pair,
    job: Job,
    later: Collection[Node],
    fitted: int,
    options: Options,
    generator: torch.Generator,
    removal: Removal | None = None,
) -> LayerRecovery:
    """Solve one job and write the outputs' new weights where their held-out error falls.

    Args:
        pair: both streams; values before this layer are final.
        job: what to solve for.
        later: operators of jobs not solved yet.
        fitted: how many of the batches are fitted.
        options: see `RecoveryOptions`.
        generator: chooses positions.
        removal: weights to remove first.
    """
    layer = _read(pair, job)
    corrects = tuple(options.sums and _can_correct(pair, job, use, later) for use in job.uses)
    problem = Problem(pair, job, corrects, fitted, options, generator)
    old, errors, ridge, rows = layer.matrix.clone(), [], 0.0, 0
    for columns in blocks(layer, options.columns):
        fit, held, spread = _gather(problem, layer, columns)
        if removal is not None:
            fit, held = _remove(layer, columns, fit, held, removal)
        found, ridge = improve(layer, columns, fit, held, spread, options.ridges)
        errors += [error / spread.value() for error in found]
        rows = fit.rows
    changed = bool((layer.matrix != old).any())
    if changed:
        _write(pair, job, layer, old)
    return LayerRecovery(
        name=job.name,
        kept=changed,
        before=errors[0],
        after=errors[-1],
        ridge=ridge,
        corrected=any(corrects),
        uses=len(job.uses),
        unknowns=int(layer.support.sum()),
        rows=rows,
    )


def _remove(
    layer: Layer, columns: slice, fit: NormalEquations, held: NormalEquations, removal: Removal
) -> tuple[NormalEquations, NormalEquations]:
    """Take this block's share of the zeros out of the support; returns the equations without those weights."""
    fixed = max(columns.stop - layer.columns, 0)
    stop = columns.stop - fixed
    matrix, support = layer.matrix[:, columns], layer.support[:, columns]
    zeros = removal.zeros * stop // layer.columns - removal.zeros * columns.start // layer.columns
    kept = choose_support(fit, matrix, support, zeros, removal.feeling, fixed=fixed)
    gone = torch.where(kept, 0.0, -matrix)
    layer.support[:, columns] = kept
    layer.matrix[:, columns] = torch.where(kept, matrix, 0.0)
    return fit.shifted(gone), held.shifted(gone)


def _read(pair: Pair, job: Job) -> Layer:
    tensors = pair.compressed.traced.tensors()
    geometry = job.uses[0].compressed.geometry
    matrix = geometry.matrix(tensors[job.name].detach().double())
    support = matrix != 0
    if job.offset is None:
        return Layer(matrix, support, False)
    groups, _, outputs = matrix.shape
    offset = matrix.new_zeros(groups, 1, outputs)
    if job.offset.sign > 0:
        offset += tensors[job.offset.name].detach().double().reshape(groups, 1, outputs)
    free = torch.ones_like(offset, dtype=torch.bool)
    return Layer(torch.cat([matrix, offset], 1), torch.cat([support, free], 1), True)


def _can_correct(pair: Pair, job: Job, use: Use, later: Collection[Node]) -> bool:
    """Whether the other operands of the sums are there and final, in both networks."""
    if use.sums is None:
        return False
    theirs, ours = use.sums
    if job.kept is not None and (has_layout(theirs) or has_layout(ours)):
        return False
    blocked = {*later, *job.compressed_nodes, *job.original_nodes}
    return not depends_on(theirs.other, blocked) and not depends_on(ours.other, blocked)


def blocks(layer: Layer, most: int) -> list[slice]:
    """Split the columns so that no Gram matrix is larger than `most`."""
    total = layer.matrix.shape[1]
    number = -(-total // most)
    step = -(-total // number)
    return [slice(begin, min(begin + step, total)) for begin in range(0, total, step)]


def _gather(problem: Problem, layer: Layer, columns: slice) -> tuple[NormalEquations, NormalEquations, Spread]:
    """Sum the normal equations of some columns over the fitted and over the held-out batches."""
    matrix, options, fitted, active = layer.matrix, problem.options, problem.fitted, problem.pair.active
    sizes = (matrix.shape[0], columns.stop - columns.start, matrix.shape[2], matrix.device)
    fit, held, spread = NormalEquations.empty(*sizes), NormalEquations.empty(*sizes), Spread(matrix)
    limit = -(-max(options.rows_per_unknown * matrix.shape[1], FEWEST_ROWS) // max(sum(i < fitted for i in active), 1))
    for index in active:
        sums = fit if index < fitted else held
        for use, correct in zip(problem.job.uses, problem.corrects, strict=True):
            patches, targets = _rows(problem, use, correct, index, limit, layer.with_offset)
            rest = targets - patches @ matrix.to(patches.dtype)
            sums.add(patches[:, :, columns], rest)
            if sums is held:
                spread.add(targets)
    return fit, held, spread


def _rows(
    problem: Problem, use: Use, correct: bool, index: int, limit: int, with_offset: bool
) -> tuple[Tensor, Tensor]:
    """Return patches (groups, rows, columns) and targets (groups, rows, outputs) of one batch and one call.

    Both are multiplied by the root of how much their position counts.
    """
    pair, job = problem.pair, problem.job
    ours, theirs = use.compressed, use.original
    wanted, wanted_theirs = [ours.input], [theirs.node]
    if correct and use.sums is not None:
        wanted_theirs.append(use.sums[0].other)
        wanted.append(use.sums[1].other)
    found, dense = pair.compressed.values(index, wanted), pair.original.values(index, wanted_theirs)
    target = _select(dense[theirs.node], job.kept, theirs.geometry.channel_axis)
    if correct and use.sums is not None:
        other = _select(dense[use.sums[0].other], job.kept, theirs.geometry.channel_axis)
        rest = (other - found[use.sums[1].other]).expand(use.sums[1].node.meta["val"].shape)
        target = target + pull_back(pair.compressed.traced, use.sums[1], rest)
    if job.offset is None and ours.bias is not None:
        bias = pair.compressed.traced.tensors()[ours.bias].detach()
        target = target - bias.reshape(-1, *(1,) * len(ours.geometry.kernel))
    windows = ours.geometry.windows(found[ours.input])
    places = ours.geometry.places(windows).numel()
    chosen = None
    if places > limit:
        chosen = torch.randperm(places, generator=problem.generator)[:limit].sort().values.to(windows.device)
    patches, targets = ours.geometry.rows(windows, chosen), ours.geometry.outputs(target, chosen)
    if with_offset:
        patches = torch.cat([patches, patches.new_ones(*patches.shape[:2], 1)], 2)
    felt = pair.weights[index].get(theirs.node) if pair.weights else None
    if felt is None or felt.numel() != places:
        return patches, targets
    scale = ((felt if chosen is None else felt[chosen]) + LEAST_WEIGHT).sqrt().reshape(1, -1, 1).to(patches)
    return patches * scale, targets * scale


def _select(values: Tensor, kept: Tensor | None, axis: int) -> Tensor:
    return values if kept is None else values.index_select(axis, kept.to(values.device))


def improve(
    layer: Layer,
    columns: slice,
    fit: NormalEquations,
    held: NormalEquations,
    spread: Spread,
    ridges: tuple[float, ...],
) -> tuple[tuple[float, float], float]:
    """Replace the columns of those outputs whose held-out error falls.

    Returns:
        Held-out error before and after, and the ridge that is best for all outputs together.
    """
    before = held.missed  # (groups, outputs)
    right = before <= ROUNDING * spread.square
    if bool(right.all()):
        return (float(before.sum()), float(before.sum())), 0.0
    best, least, totals = torch.zeros_like(fit.cross), before.clone(), []
    for change in ridge_changes(fit, layer.support[:, columns], ridges):
        errors = held.errors(change)
        totals.append(float(errors.sum()))
        better = (errors < least) & ~right
        least = torch.where(better, errors, least)
        best = torch.where(better.unsqueeze(1), change, best)
    layer.matrix[:, columns] += best
    return (float(before.sum()), float(least.sum())), ridges[totals.index(min(totals))]


@torch.no_grad()
def _write(pair: Pair, job: Job, layer: Layer, old: Tensor) -> None:
    tensors = pair.compressed.traced.tensors()
    weight = tensors[job.name]
    matrix = torch.where(layer.support, layer.matrix, 0.0)
    geometry = job.uses[0].compressed.geometry
    weight.copy_(geometry.weight(matrix[:, : layer.columns], weight))
    if job.offset is not None:
        offset = tensors[job.offset.name]
        moved = (matrix - torch.where(layer.support, old, 0.0))[:, layer.columns :].reshape(offset.shape)
        offset.add_((job.offset.sign * moved).to(offset.dtype))
