"""The exact cost of any choice of channels, before anything is cut.

A term is K * prod(n_d) with n_d the alive count of a vector of ids; a unit that owns r_d of them saves
K * (prod(n_d) - prod(n_d - r_d)). That is not additive over units which share an operator, so the counts are kept up
to date while units go. MACs: convolutions, linear layers, matrix products and attention; FLOPs = 2 * MACs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from pruners.channels.groups import Groups
from pruners.channels.labels import Ids


@dataclass(frozen=True, slots=True)
class Saving:
    """What the removal of one unit saves now."""

    params: int
    macs: int


class CostModel:
    """Parameters and MACs of a model while units are taken away and given back.

    Attributes:
        params: alive parameters, tied tensors once, buffers apart.
        macs: multiply-accumulates of the example's forward.
    """

    def __init__(self, groups: Groups) -> None:
        self._factors: list[int] = []
        self._counts: list[list[int]] = []
        self._is_macs: list[bool] = []
        self._own: dict[int, list[tuple[int, list[tuple[int, int]]]]] = {}
        self._gone: set[int] = set()
        self._roots = [group.roots.tolist() for group in groups.groups]
        wanted = np.concatenate([group.roots for group in groups.groups] or [np.empty(0, np.int64)])
        self._wanted = np.sort(wanted)
        for slot in groups.atoms.slots:
            if slot.kind == "parameter":
                self._add(False, 1, [slot.ids(dim) for dim in slot.starts], groups)
        for trace in groups.traces[:1]:
            for factor, vectors in trace.macs:
                self._add(True, factor, vectors, groups)
        self.params, self.macs = self._total(False), self._total(True)
        self.dense_params, self.dense_macs = self.params, self.macs

    def _add(self, is_macs: bool, factor: int, vectors: Sequence[Ids], groups: Groups) -> None:
        if not factor:
            return
        term = len(self._factors)
        owned: dict[int, list[tuple[int, int]]] = {}
        for place, ids in enumerate(vectors):
            roots, counts = np.unique(groups.labels.find(ids), return_counts=True)
            mine = np.isin(roots, self._wanted)
            for root, count in zip(roots[mine].tolist(), counts[mine].tolist(), strict=True):
                owned.setdefault(root, []).append((place, count))
        for root, slots in owned.items():
            self._own.setdefault(root, []).append((term, slots))
        self._factors.append(factor)
        self._counts.append([len(ids) for ids in vectors])
        self._is_macs.append(is_macs)

    def _total(self, is_macs: bool) -> int:
        each = zip(self._factors, self._counts, self._is_macs, strict=True)
        return sum(factor * prod(counts) for factor, counts, kind in each if kind is is_macs)

    def saving(self, group: int, unit: int) -> Saving:
        """What the removal of a unit (by its group's and its own index) would save at this moment."""
        return self._saving(self._roots[group][unit])

    def _saving(self, root: int) -> Saving:
        params = macs = 0
        for term, slots in self._own.get(root, ()):
            counts = self._counts[term]
            after = list(counts)
            for place, count in slots:
                after[place] -= count
            saved = self._factors[term] * (prod(counts) - prod(after))
            if self._is_macs[term]:
                macs += saved
            else:
                params += saved
        return Saving(params, macs)

    def remove(self, group: int, unit: int) -> Saving:
        """Take a unit away; returns what that saved. Taking it twice saves nothing more."""
        return self._change(self._roots[group][unit], gone=True)

    def restore(self, group: int, unit: int) -> Saving:
        """Give a unit back; returns what it costs."""
        return self._change(self._roots[group][unit], gone=False)

    def _change(self, root: int, *, gone: bool) -> Saving:
        if (root in self._gone) is gone:
            return Saving(0, 0)
        before = (self.params, self.macs)
        if not gone:
            self._shift(root, 1)
            change = self._saving(root)
            self.params, self.macs = self.params + change.params, self.macs + change.macs
            self._gone.discard(root)
            return change
        change = self._saving(root)
        self._shift(root, -1)
        self._gone.add(root)
        self.params, self.macs = before[0] - change.params, before[1] - change.macs
        return change

    def _shift(self, root: int, sign: int) -> None:
        for term, slots in self._own.get(root, ()):
            for place, count in slots:
                self._counts[term][place] += sign * count

    def remove_all(self, units: Iterable[tuple[int, int]]) -> CostModel:
        """Take many units away; returns itself."""
        for group, unit in units:
            self.remove(group, unit)
        return self
