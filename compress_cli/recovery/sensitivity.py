"""How much a network's outputs feel errors inside it, by channel and by position; backward passes on unlabelled images.

With outputs f and random v, the expected square of d(v.f)/dy is the squared norm of their derivative with respect to
one value of a layer's output y: summed over positions it says how much a channel counts, summed over channels how much
a position of an image does. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from compress_cli.recovery.images import Batch
from compress_cli.recovery.trace import Call, Traced
from profilers.modes import eval_mode

PROJECTIONS = 4
"""Random projections of the outputs from which a position's weight is averaged; with one it is mostly noise."""


def sensitivities(traced: Traced, batches: Sequence[Batch], seed: int = 0) -> dict[str, Tensor]:
    """Return how much the outputs feel an error of each layer's output channels.

    Args:
        traced: the network.
        batches: images, of the traced batch size.
        seed: of the random projections.

    Returns:
        weight name -> (groups, outputs per group): squared derivative of a random projection of the outputs (each
        scaled to unit spread), summed over positions, mean over images. Empty where no output has a derivative.
    """
    sums: dict[str, Tensor] = {}
    for squares in _squared_gradients(traced, batches, seed, 1):
        for call, values in squares.items():
            axis = values.dim() + call.geometry.channel_axis
            total = values.double().sum([a for a in range(values.dim()) if a != axis])
            sums[call.weight] = sums.get(call.weight, torch.zeros_like(total)) + total
    groups = {call.weight: call.geometry.groups for call in traced.calls()}
    count = max(sum(batch[0].shape[0] for batch in batches), 1)
    return {name: (total / count).reshape(groups[name], -1) for name, total in sums.items()}


def position_weights(traced: Traced, batches: Sequence[Batch], seed: int = 0) -> list[dict[Node, Tensor]]:
    """Return how much the outputs feel an error at each position of each layer's output.

    Args:
        traced: the network.
        batches: images, of the traced batch size, on the network's device.
        seed: of the random projections.

    Returns:
        For each batch the layer's operator -> (batch * positions,) in the order of `Geometry.rows`, mean 1 over the
        batch; outputs themselves, felt the same everywhere, and what they do not depend on are left out.
    """
    found, outputs = [], set(traced.outputs)
    for squares in _squared_gradients(traced, batches, seed, PROJECTIONS):
        sums = {call.node: values.sum(call.geometry.channel_axis).flatten() for call, values in squares.items()}
        found.append({node: w / w.mean().clamp(min=1e-30) for node, w in sums.items() if node not in outputs})
    return found


def _squared_gradients(
    traced: Traced, batches: Sequence[Batch], seed: int, projections: int
) -> Iterator[dict[Call, Tensor]]:
    """Yield, for each batch, the squared derivative of random projections at each layer's output, summed over them."""
    generator = torch.Generator().manual_seed(seed)
    order = traced.needed(traced.outputs, traced.inputs)
    reached = [call for call in traced.calls() if call.node in set(order)]
    keep = list(dict.fromkeys([*(call.node for call in reached), *traced.outputs]))
    for batch in batches:
        sums: dict[Call, Tensor] = {}
        with eval_mode(traced.module), torch.enable_grad():
            known = {
                node: part.detach().clone().requires_grad_() if part.is_floating_point() else part
                for node, part in zip(traced.inputs, batch, strict=True)
            }
            values = traced.evaluate(order, known, keep)
            layers = [values[call.node] for call in reached]
            felt = [node for node in traced.outputs if values[node].requires_grad]
            for left in reversed(range(projections if felt else 0)):  # nothing is felt of outputs like comparisons
                loss = sum(_projection(values[node], generator) for node in felt)
                gradients = torch.autograd.grad(loss, layers, allow_unused=True, retain_graph=left > 0)  # type: ignore[arg-type]
                for call, gradient in zip(reached, gradients, strict=True):
                    if gradient is not None:
                        square = gradient.square()
                        sums[call] = sums[call] + square if call in sums else square
        yield sums


def _projection(output: Tensor, generator: torch.Generator) -> Tensor:
    spread = output.detach().std(0, unbiased=False).square().mean().sqrt().clamp(min=1e-12)
    weights = torch.randn(output.shape, generator=generator).to(output)
    return (output * weights).sum() / spread
