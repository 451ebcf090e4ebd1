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
        self._batches = batches
        self._kept: list[dict[Node, Tensor]] = [self._inputs(index) for index in range(len(batches))]

    def __len__(self) -> int:
        return len(self._kept)

    def _inputs(self, index: int) -> dict[Node, Tensor]:
        return dict(zip(self.traced.inputs, self._batches[index], strict=True))

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

    def room(self, pending: Collection[Node]) -> int:
        """For how many batches the frontier fits into the budget.

        Args:
            pending: nodes whose values are not final yet; so is everything that depends on them.
        """
        size = self._size(self._frontier(set(pending)))
        return min(self.budget // size, len(self)) if size else len(self)

    def settle(self, pending: Collection[Node], active: Collection[int] | None = None) -> None:
        """Move the frontier up to the operators that will still change, if it fits into the budget.

        Args:
            pending: as for `room`.
            active: batches that are wanted next (None: all); of the others only the inputs are kept.
        """
        frontier = self._frontier(set(pending))
        wanted = range(len(self)) if active is None else active
        for index in set(range(len(self))).difference(wanted):
            self._kept[index] = self._inputs(index)
        if self._size(frontier) * len(wanted) > self.budget:
            return
        for index in wanted:
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
        """Bytes of these nodes for one batch."""
        total = 0
        for node in frontier:
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                return self.budget + 1  # a tuple of values: stop before it
            total += value.numel() * value.element_size()
        return total
