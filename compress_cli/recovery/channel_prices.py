"""What the removal of channels costs after compensation: scores for `pruners.channels`, from unlabelled images.

Removing the columns B of a layer's input, when the other columns make up for it, adds w_B' ([G^-1]_BB)^-1 w_B to the
squared error of each output (Hassibi and Stork 1993, for blocks). Each group is emptied greedily, the cheapest unit
first, with weights and inverse brought up to date after each, so that a unit's price is what it adds to those already
gone; all layers that read the group's channels count, each weighted by how much the network's outputs feel its own.
Half way the network is run with the compensated weights: what the outputs then show, over what the prices say, is the
factor for the group's prices (`reaction.py`). Last they are divided by the MACs that the unit saves.

Groups that no such layer reads, queries and keys of attention, inputs of grouped convolutions or of layers too wide to
solve at once, are ranked by size, in the same currency: what the outputs show when the smaller half of them is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress_cli.recovery.errors import CannotTrace
from compress_cli.recovery.images import arrange
from compress_cli.recovery.jobs import output_offset
from compress_cli.recovery.normal import NormalEquations
from compress_cli.recovery.reaction import Reaction
from compress_cli.recovery.routine import SENSITIVE_IMAGES, RecoveryOptions, Step
from compress_cli.recovery.sampling import sampled_patches
from compress_cli.recovery.sensitivity import sensitivities
from compress_cli.recovery.stream import Stream
from compress_cli.recovery.trace import Call, Traced, trace
from pruners.channels import CostModel, Group, Groups, ScoreOptions, score
from pruners.channels.masker import Masker
from pruners.channels.measuring import filled

RIDGE = 1e-3
"""Relative to the diagonal of the Gram matrix."""
ROWS = 20_000
MEASURED_IMAGES = 128
"""Images on which each group is measured."""


@dataclass(slots=True)
class Reader:
    """One layer that reads channels of a group.

    Attributes:
        inverse: (columns, columns), of the Gram matrix per row, with its ridge.
        weights: (columns, outputs).
        feeling: (outputs,).
        area: columns of one input channel.
    """

    inverse: Tensor
    weights: Tensor
    feeling: Tensor
    area: int

    def columns(self, channels: NDArray[np.int64]) -> Tensor:
        """Columns (units, positions * area) of channels (units, positions)."""
        first = torch.as_tensor(channels, device=self.weights.device) * self.area
        spread = first.unsqueeze(2) + torch.arange(self.area, device=first.device)
        return spread.flatten(1)

    def prices(self, columns: Tensor) -> Tensor:
        """What removing each unit's columns (units, size) adds: (units,)."""
        block = self.inverse[columns.unsqueeze(2), columns.unsqueeze(1)]
        own = self.weights[columns]  # (units, size, outputs)
        solved: Tensor = torch.linalg.solve(block, own)
        return (own * solved * self.feeling).sum((1, 2))

    def remove_(self, columns: Tensor) -> None:
        """Remove columns (size,) and let the others make up for them."""
        side = self.inverse[:, columns]
        share = torch.linalg.solve(side[columns], torch.cat([self.weights[columns], side.T], 1))
        outputs = self.weights.shape[1]
        self.weights = self.weights - side @ share[:, :outputs]
        self.inverse = self.inverse - side @ share[:, outputs:]
        self.weights[columns] = 0.0
        self.inverse[columns] = 0.0
        self.inverse[:, columns] = 0.0


Reading = list[tuple[str, Reader, Tensor]]
"""Layers that read a group: weight, its reader, columns (units, size) of each unit."""


def channel_prices(
    dense: nn.Module,
    batches: Sequence[Tensor | Sequence[Tensor]],
    groups: Groups,
    *,
    seed: int = 0,
    options: RecoveryOptions | None = None,
    on_step: Step | None = None,
) -> list[NDArray[np.float64]]:
    """Score every unit of every group; higher is more important. See the module.

    Args:
        dense: the network that was analysed; not changed.
        batches: unlabelled images.
        groups: from `pruners.channels.analyse`.
        seed, options, on_step: as in `recover`.

    Raises:
        NoImages, CannotTrace: as in `recover`; also where no output has a derivative.
    """
    options, report = options or RecoveryOptions(), on_step or (lambda done, total, text: None)
    images = arrange(batches, options.batch_size, options.holdout, seed)
    device = next(dense.parameters()).device
    parts = [tuple(part.to(device) for part in batch) for batch in images.batches[: images.fitted]]
    traced = trace(dense, parts[0], "original")
    feelings = sensitivities(traced, parts[: max(SENSITIVE_IMAGES // images.size, 1)], seed)
    if not feelings:
        raise CannotTrace("original", "none of its outputs has a derivative, which prices need")
    stream = Stream(traced, parts, options.memory, device)
    generator = torch.Generator().manual_seed(seed)
    calls = [call for call in traced.calls() if call.weight in feelings and _solvable(call, traced, options.columns)]
    read = {member.tensor for group in groups.groups for member in group.members}
    readers: dict[str, Reader] = {}
    wanted = [call for call in calls if call.weight in read]
    steps = len(wanted) + len(groups.groups)
    for place, call in enumerate(wanted):
        report(place, steps, call.weight)
        stream.settle({later.node for later in wanted[place:]})
        if call.weight not in readers:
            readers[call.weight] = _reader(traced, stream, call, feelings[call.weight], options, generator)
    cost = CostModel(groups)
    del stream
    reaction = Reaction(traced, parts[: max(MEASURED_IMAGES // images.size, 1)], options.memory)
    readings = [_reading(group, traced, readers) for group in groups.groups]
    first = {call.weight: place for place, call in reversed(list(enumerate(wanted)))}
    sized = [place for place, reading in enumerate(readings) if not reading]
    order = [place for place, reading in enumerate(readings) if reading]
    order.sort(key=lambda place: min(first[name] for name, _, _ in readings[place]))
    prices: list[NDArray[np.float64]] = [np.zeros(group.units) for group in groups.groups]
    known: dict[int, float | None] = {}
    masker = Masker(dense, groups)
    sizes = score(dense, groups, ScoreOptions("magnitude", "none")) if sized else []
    for done, place in enumerate((*sized, *order)):
        report(len(wanted) + done, steps, groups.groups[place].name)
        if place in sized:
            values = sizes[place]
            smaller = np.argsort(values, kind="stable")[: max(1, len(values) // 2)].tolist()
            with masker.without({place: smaller}):
                known[place] = reaction.factor(float(values[smaller].sum()), {})
        else:
            reaction.settle({name for later in order[done - len(sized) :] for name, _, _ in readings[later]})
            values, known[place] = _prices(len(prices[place]), readings[place], reaction)
        saved = [max(cost.saving(place, unit).macs, 1) for unit in range(len(values))]
        prices[place] = values / np.asarray(saved, dtype=np.float64)
        readings[place] = []  # its inverses
    for kind in (sized, order):  # what could not be measured takes the median of its kind
        for place, factor in zip(kind, filled([known[place] for place in kind]), strict=True):
            prices[place] = prices[place] * factor
    return prices


def _solvable(call: Call, traced: Traced, columns: int) -> bool:
    """Whether the layer's inputs can be removed and made up for: every output reads all of them, and they are few."""
    weight = traced.tensors()[call.weight]
    return call.geometry.groups == 1 and call.geometry.matrix(weight.detach()).shape[1] <= columns


@torch.no_grad()
def _reader(
    traced: Traced, stream: Stream, call: Call, feeling: Tensor, options: RecoveryOptions, generator: torch.Generator
) -> Reader:
    matrix = call.geometry.matrix(traced.tensors()[call.weight].detach().double())[0]
    constant = output_offset(traced, [call]) is not None
    columns = matrix.shape[0] + constant
    sums = NormalEquations.empty(1, columns, 0, matrix.device)
    limit = -(-max(options.rows_per_unknown * columns, ROWS) // len(stream))
    for index in range(len(stream)):
        patches = sampled_patches(stream, index, call, limit=limit, constant=constant, generator=generator)
        sums.add(patches, patches[:, :, :0])
    gram = sums.gram[0] / max(sums.rows, 1)
    gram.diagonal().add_(RIDGE * gram.diagonal() + 1e-9 * gram.diagonal().mean().clamp(min=1e-30))
    if constant:
        matrix = torch.cat([matrix, matrix.new_zeros(1, matrix.shape[1])])
    area = call.geometry.area
    return Reader(torch.linalg.inv(gram), matrix, feeling.reshape(-1).to(matrix), area)


def _reading(group: Group, traced: Traced, readers: dict[str, Reader]) -> Reading:
    """The layers that read a group; empty where one that reads it cannot be solved."""
    dims = {call.weight: 0 if call.geometry.kind == "transposed" else 1 for call in traced.calls()}
    read = [member for member in group.members if member.dim == dims.get(member.tensor)]
    if any(member.tensor not in readers for member in read):
        return []
    own = {name: replace(reader) for name, reader in readers.items()}  # other groups read the same layers
    return [(member.tensor, own[member.tensor], own[member.tensor].columns(member.index)) for member in read]


def _prices(units: int, reading: Reading, reaction: Reaction) -> tuple[NDArray[np.float64], float | None]:
    """Empty one group greedily: price of each unit at its turn, never below an earlier one's, and their factor."""
    prices = np.zeros(units)
    alive, highest, spent = list(range(units)), 0.0, 0.0
    factor: float | None = None
    device = next((reader.weights.device for _, reader, _ in reading), torch.device("cpu"))
    while alive:
        none = torch.zeros(len(alive), dtype=torch.float64, device=device)
        now = sum((reader.prices(columns[alive]) for _, reader, columns in reading), none)
        cheapest = int(now.argmin())
        spent += float(now[cheapest])
        highest = max(highest, float(now[cheapest]))
        unit = alive.pop(cheapest)
        prices[unit] = highest
        for _, reader, columns in reading:
            reader.remove_(columns[unit])
        if len(alive) == units // 2 or (factor is None and len(alive) == 1):
            factor = reaction.factor(spent, {name: reader.weights.unsqueeze(0) for name, reader, _ in reading})
    return prices, factor
