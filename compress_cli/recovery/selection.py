"""Choosing weights by what their removal costs after compensation, in rounds of removal and recovery.

A weight's price is the optimal brain surgeon's w^2 / [G_S^-1] on its output's support (`normal.removal_costs`): the
mean squared error that its removal adds to the layer's output once the other weights have made up for it. Prices of
different layers become comparable through the sensitivity of the network's outputs f to the layer's output y: sum
over positions of E[(d(v.f)/dy)^2] per channel, with random v; one backward pass on unlabelled images, no training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from compress_cli.recovery.images import Batch, arrange
from compress_cli.recovery.record import RecoveryRecord
from compress_cli.recovery.routine import RecoveryOptions, Step, recover
from compress_cli.recovery.trace import Traced, evaluation, trace
from pruners.candidates import candidates_in_module, narrow
from pruners.errors import InfeasibleSparsity
from pruners.magnitude_options import count_zeros_asked, parse_floor, parse_sparsity

ROUNDS = 4
SENSITIVE_IMAGES = 256


def sensitivities(traced: Traced, batches: Sequence[Batch], seed: int = 0) -> dict[str, Tensor]:
    """Return how much the outputs feel an error of each layer's output channels.

    Args:
        traced: the network.
        batches: images, of the traced batch size.
        seed: of the random projections.

    Returns:
        weight name -> (as the weight), the same for all weights of an output channel: squared derivative of a random
        projection of the outputs (each scaled to unit spread), summed over positions, mean over images.
    """
    generator = torch.Generator().manual_seed(seed)
    calls = traced.calls()
    order = traced.needed(traced.outputs, traced.inputs)
    sums: dict[str, Tensor] = {}
    count = 0
    with evaluation(traced.module), torch.enable_grad():
        for batch in batches:
            known = {
                node: part.detach().clone().requires_grad_() if part.is_floating_point() else part
                for node, part in zip(traced.inputs, batch, strict=True)
            }
            reached = [call for call in calls if call.node in set(order)]
            keep = list(dict.fromkeys([*(call.node for call in reached), *traced.outputs]))
            values = traced.evaluate(order, known, keep)
            loss = sum(_projection(values[node], generator) for node in traced.outputs)
            gradients = torch.autograd.grad(loss, [values[call.node] for call in reached], allow_unused=True)  # type: ignore[arg-type]
            count += batch[0].shape[0]
            for call, gradient in zip(reached, gradients, strict=True):
                if gradient is not None:
                    axis = gradient.dim() + call.geometry.channel_axis
                    squares = gradient.double().square().sum([a for a in range(gradient.dim()) if a != axis])
                    sums[call.weight] = sums.get(call.weight, torch.zeros_like(squares)) + squares
    found = {}
    for call in calls:
        if call.weight in sums:
            weight = traced.tensors()[call.weight].detach()
            columns = call.geometry.matrix(weight).shape[1]
            channels = (sums[call.weight] / max(count, 1)).reshape(call.geometry.groups, 1, -1)
            found[call.weight] = call.geometry.weight(channels.expand(-1, columns, -1), weight)
    return found


def _projection(output: Tensor, generator: torch.Generator) -> Tensor:
    spread = output.detach().std(0, unbiased=False).square().mean().sqrt().clamp(min=1e-12)
    weights = torch.randn(output.shape, generator=generator).to(output)
    return (output * weights).sum() / spread


def zero_cheapest_(
    tensors: Mapping[str, Tensor], prices: Mapping[str, Tensor], zeros: int, floor: int, asked: str
) -> None:
    """Zero the cheapest weights until exactly so many are zero; ties fall in the order of tensors and places.

    Args:
        tensors: name -> weight; changed in place.
        prices: name -> (as the weight); weights without a price stay.
        zeros: how many of all weights are zero afterwards (more, if more are zero already).
        floor: weights that every tensor keeps.
        asked: the sparsity as the user wrote it, for the error.

    Raises:
        InfeasibleSparsity: floors and weights without a price leave too few; nothing was changed.
    """
    ranked = []
    for name, tensor in tensors.items():
        flat = tensor.detach().flatten()
        price = prices[name].flatten().to(flat.device) if name in prices else torch.full_like(flat, torch.inf).double()
        price = torch.where(flat == 0, -1.0, price)
        if name in prices and floor:
            price[price.topk(min(floor, price.numel())).indices] = torch.inf
            price[flat == 0] = -1.0
        ranked.append(price)
    everything = torch.cat(ranked)
    room = int((everything < torch.inf).sum())
    if zeros > room:
        raise InfeasibleSparsity(asked, room / everything.numel(), floor)
    gone = torch.zeros_like(everything, dtype=torch.bool)
    gone[torch.argsort(everything, stable=True)[:zeros]] = True
    with torch.no_grad():
        for tensor, mask in zip(tensors.values(), gone.split([t.numel() for t in tensors.values()]), strict=True):
            tensor.masked_fill_(mask.reshape(tensor.shape), 0.0)


def prune_with_recovery_(
    dense: nn.Module,
    compressed: nn.Module,
    batches: Sequence[Tensor | Sequence[Tensor]],
    sparsity: str,
    *,
    rounds: int = ROUNDS,
    floor: str = "0.02%",
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    seed: int = 0,
    options: RecoveryOptions | None = None,
    on_step: Step | None = None,
    on_round: Callable[[str, RecoveryRecord], None] | None = None,
) -> RecoveryRecord:
    """Prune to an exact sparsity by price, recovering after each of several rounds.

    Args:
        dense: the original; not changed.
        compressed: a copy of it, or of it with some zeros already; changed in place.
        batches: unlabelled images.
        sparsity: share of the ranked weights that is zero at the end.
        rounds: removals; densities fall by the same factor each time.
        floor, ignore, only: as in `MagnitudeOptions`.
        seed, options: as in `recover`.
        on_step: called with (steps done, steps in all, what comes next).
        on_round: called with (sparsity so far, record of its recovery).

    Raises:
        InfeasibleSparsity, NoMatch, BadSparsity: as in magnitude pruning.
        RecoveryError: as in `recover`.
    """
    options = options or RecoveryOptions()
    chosen = narrow(candidates_in_module(compressed), only, ignore)
    tensors, least = chosen.tensors, parse_floor(floor, chosen.weights)
    feelings = _feelings(dense, batches, options, seed)
    passes = replace(options, batch_norms=False)
    asked = _ramp(sparsity, rounds)
    report = _steps(on_step, len(asked) + 1)
    costs: dict[str, Tensor] = {}
    record = recover(dense, compressed, batches, seed=seed, options=passes, on_step=report(0), costs=costs)
    for number, share in enumerate(asked, 1):
        prices = {name: cost * feelings[name] for name, cost in costs.items() if name in feelings}
        zero_cheapest_(tensors, prices, count_zeros_asked(share, chosen.weights), least, sparsity)
        costs = {}
        last = number == len(asked)
        record = recover(
            dense,
            compressed,
            batches,
            seed=seed,
            options=options if last else passes,
            on_step=report(number),
            costs=None if last else costs,
        )
        if on_round is not None:
            on_round(share, record)
    return record


def _feelings(
    dense: nn.Module, batches: Sequence[Tensor | Sequence[Tensor]], options: RecoveryOptions, seed: int
) -> dict[str, Tensor]:
    images = arrange(batches, options.batch_size, options.holdout, seed)
    device = next(dense.parameters()).device
    some = [tuple(part.to(device) for part in batch) for batch in images.batches[: images.fitted]]
    some = some[: max(SENSITIVE_IMAGES // images.size, 1)]
    return sensitivities(trace(dense, some[0], "original"), some, seed)


def _ramp(sparsity: str, rounds: int) -> list[str]:
    """Sparsities of the rounds: densities fall geometrically, the last one is exactly what was asked."""
    density = float(1 - parse_sparsity(sparsity))
    steps = [repr(float(1 - Fraction(density ** (number / rounds)))) for number in range(1, rounds)]
    return [*steps, sparsity]


def _steps(on_step: Step | None, passes: int) -> Callable[[int], Step]:
    """Turn the progress of one pass into that of all."""

    def of(number: int) -> Step:
        def step(done: int, total: int, text: str) -> None:
            if on_step is not None:
                on_step(number * total + done, passes * total, text)

        return step

    return of
