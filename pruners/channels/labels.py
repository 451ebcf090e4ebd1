"""Channel identities: a union-find over integer ids, with the reason why a class may not be removed.

An atom is (tensor, dim, index), an id >= RESERVED. Ids below RESERVED stand for reasons: a class is frozen when its
root, the smallest id in it, is one of them, and the first reason given stays. All operations work on whole vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
RESERVED = 1 << 14


@dataclass(frozen=True, slots=True)
class Reason:
    """Why channels stay: what happened, at which operator, on which line of the user's code."""

    text: str
    operator: str = ""
    source: str = ""

    def __str__(self) -> str:
        at = f" at {self.operator}" if self.operator else ""
        return f"{self.text}{at}" + (f" ({self.source})" if self.source else "")


class Labels:
    """Classes of ids that must be removed together."""

    def __init__(self) -> None:
        self._parent: Ids = np.arange(RESERVED, dtype=np.int64)
        self._reasons: dict[Reason, int] = {}
        self._by_id: list[Reason] = []

    @property
    def size(self) -> int:
        """All ids given out so far, reasons included."""
        return int(self._parent.size)

    def fresh(self, count: int) -> Ids:
        """Return new ids, each a class of its own."""
        start = self.size
        ids = np.arange(start, start + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, ids])
        return ids

    def reason_id(self, reason: Reason) -> int:
        """Return the frozen id of a reason; once the reserved ids are used up, the last one stands for all others."""
        known = self._reasons.get(reason)
        if known is not None:
            return known
        if len(self._by_id) < RESERVED:
            self._by_id.append(reason)
        self._reasons[reason] = len(self._by_id) - 1
        return len(self._by_id) - 1

    def find(self, ids: Ids) -> Ids:
        """Return the root of each id."""
        roots: Ids = self._parent[ids]
        while True:
            above: Ids = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def is_frozen(self, ids: Ids) -> NDArray[np.bool_]:
        """Tell which ids may not be removed."""
        frozen: NDArray[np.bool_] = self.find(ids) < RESERVED
        return frozen

    def reason(self, root: int) -> Reason:
        """Return why a frozen class is frozen."""
        return self._by_id[root]

    def unite(self, left: Ids, right: Ids) -> None:
        """Merge the classes of two equally long vectors element by element."""
        while True:
            a, b = self.find(left), self.find(right)
            differ = (a != b) & ((a >= RESERVED) | (b >= RESERVED))  # two reasons never merge
            if not differ.any():
                return
            low, high = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
            np.minimum.at(self._parent, high, low)

    def freeze(self, ids: Ids, reason: Reason) -> None:
        """Forbid the removal of these ids' classes; classes frozen before keep their reason."""
        self.unite(ids, np.full(ids.shape, self.reason_id(reason), np.int64))

    def copy(self) -> Labels:
        """Return an independent copy, for a selection under further constraints."""
        other = Labels()
        other._parent = self._parent.copy()
        other._reasons = dict(self._reasons)
        other._by_id = list(self._by_id)
        return other
