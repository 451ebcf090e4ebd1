"""Running two networks side by side on the same images, each layer once.

A stream keeps, per batch, the values that later layers still need (the frontier) as far as a memory budget allows;
what does not fit is computed again from the last values that did. Only one batch is in work at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from compress_cli.recovery.trace import Traced


class Stream:
    """The values of one network on all batches, as far as they are needed again."""

    def __init__(self, traced: Traced, batches: Sequence[tuple[Tensor, ...]], budget: int, device: Any) -> None:
        self.traced = traced
        self.budget = budget
        self.device = device
        self._kept: list[dict[Node, Tensor]] = [dict(zip(traced.inputs, batch, strict=True)) for batch in batches]

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def values(self, index: int, wanted: Sequence[Node]) -> dict[Node, Any]:
        """Return the values of some nodes for one batch."""
        known = {node: value.to(self.device) for node, value in self._kept[index].items()}
        order = self.traced.needed(wanted, known)
        fixed = {node: self.traced.fixed_value(node) for node in wanted if self.traced.is_fixed(node)}
        return {**self.traced.evaluate(order, known, [node for node in wanted if node not in fixed]), **fixed}

    def outputs(self, index: int) -> list[Tensor]:
        """Return the network's outputs for one batch."""
        found = self.values(index, self.traced.outputs)
        return [found[node] for node in self.traced.outputs]

    def settle(self, pending: Collection[Node]) -> None:
        """Move the frontier up to the operators that will still change, if it fits into the budget.

        Args:
            pending: nodes whose values are not final yet; so is everything that depends on them.
        """
        frontier = self._frontier(set(pending))
        if self._size(frontier) > self.budget:
            return
        for index in range(len(self._kept)):
            self._kept[index] = self.values(index, frontier)

    def _frontier(self, pending: set[Node]) -> list[Node]:
        """Final nodes that a pending one or the output needs."""
        open_nodes = set(pending)
        found: list[Node] = []
        outputs = set(self.traced.outputs)
        for node in self.traced.nodes:
            if self.traced.is_fixed(node) or node.op == "output":
                continue
            if node in open_nodes or any(source in open_nodes for source in node.all_input_nodes):
                open_nodes.add(node)
        for node in self.traced.nodes:
            if node in open_nodes or self.traced.is_fixed(node) or node.op == "output":
                continue
            if node in outputs or any(user in open_nodes for user in node.users):
                found.append(node)
        return found

    def _size(self, frontier: Sequence[Node]) -> int:
        """Bytes of these nodes over all batches."""
        total = 0
        for node in frontier:
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                return self.budget + 1  # a tuple of values: stop before it
            total += value.numel() * value.element_size()
        return total * len(self._kept)
