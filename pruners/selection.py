"""Exact choice of the k smallest magnitudes of many tensors at once, in little memory and about two reads.

Total order: ascending (abs(w), tensor index, row-major index); the first k go. A sorted sample of about 65,536
keys brackets the k-th one, a pass counts what lies below the bracket and collects what lies in it (about 1 %),
and a partition of the collected keys gives the threshold. A bracket that missed is widened; one that holds too much
(heavy ties, billions of weights) is narrowed by histograms instead of being collected, so the memory is bounded.

Floor: every tensor keeps its min(n_l, floor) largest weights, the k smallest of the rest go. Tensors that the
threshold leaves with too little join a set V and leave the ranking; the threshold then only rises and V only grows,
so the loop ends at the fix-point, which is that rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from torch import Tensor

from pruners.keys import Ints, KeyKind, KeyReader, common_kind, sample, value_of

SAMPLE = 65_536
LIMIT = 2_000_000
BINS = 65_536


class NotFinite(Exception):
    """`tensor` holds NaN or infinity."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        super().__init__("a tensor holds NaN or infinity")


class Infeasible(Exception):
    """The floors leave `room` as the largest number of zeros."""

    def __init__(self, room: int) -> None:
        self.room = room
        super().__init__(f"at most {room} weights can be zero")


@dataclass(frozen=True, slots=True)
class LocalCut:
    """What one tensor loses: all below `threshold` and the first `taken` of the `ties` equal to it."""

    threshold: float
    ties: int
    taken: int
    zeros_before: int
    zeros_after: int


@dataclass(frozen=True, slots=True)
class Ranked:
    """The k-th smallest magnitude and, per tensor, how many lie below it, equal it, and are zero."""

    value: float
    below: list[int]
    equal: list[int]
    zeros: list[int]

    def dropped(self, k: int) -> list[int]:
        """Return how many weights each tensor loses when the first k of the total order go."""
        left = k - sum(self.below)
        counts = []
        for below, equal in zip(self.below, self.equal, strict=True):
            ties = min(equal, left)
            left -= ties
            counts.append(below + ties)
        return counts


@dataclass(frozen=True, slots=True)
class _Scan:
    """Per-tensor counts of one pass over the keys, and the collected keys unless there were too many."""

    space: KeyKind
    below: list[int]
    inside: list[int]
    zeros: list[int]
    collected: Ints | None

    def rank(self, k: int) -> Ranked | None:
        """Return the k-th smallest key if it is zero or among the collected ones."""
        if k <= sum(self.zeros):
            return Ranked(0.0, [0] * len(self.zeros), self.zeros, self.zeros)
        place = k - sum(self.below) - 1
        if self.collected is None or not 0 <= place < self.collected.size:
            return None
        key = int(np.partition(self.collected, place)[place])
        parts = self._parts()
        below = [outside + int(np.count_nonzero(part < key)) for outside, part in zip(self.below, parts, strict=True)]
        return Ranked(
            value_of(key, self.space), below, [int(np.count_nonzero(part == key)) for part in parts], self.zeros
        )

    def of(self, places: Sequence[int]) -> _Scan:
        """Return the same pass over some of its tensors only."""
        below, inside, zeros = ([counts[i] for i in places] for counts in (self.below, self.inside, self.zeros))
        if self.collected is None or not places:
            return _Scan(self.space, below, inside, zeros, None)
        parts = self._parts()
        return _Scan(self.space, below, inside, zeros, np.concatenate([parts[i] for i in places]))

    def _parts(self) -> list[Ints]:
        return [] if self.collected is None else np.split(self.collected, np.cumsum(self.inside)[:-1])


def scan_zeros(tensors: Sequence[Tensor]) -> list[int]:
    """Return the zeros of each tensor; raises NotFinite."""
    return _scan(tensors, common_kind(tensors), 1, 0, None, limit=0).zeros if tensors else []


def kth_smallest(tensors: Sequence[Tensor], k: int) -> Ranked:
    """Find the k-th smallest magnitude of all tensors, 1 <= k <= number of elements.

    Raises:
        NotFinite: a tensor holds NaN or infinity.
    """
    return _search(tensors, k)[0]


def _search(tensors: Sequence[Tensor], k: int) -> tuple[Ranked, _Scan]:
    """Return the k-th smallest magnitude and the pass that held it."""
    space = common_kind(tensors)
    total = sum(tensor.numel() for tensor in tensors)
    wanted = min(16 * SAMPLE, max(SAMPLE, total // 1024))
    drawn = sample(tensors, space, max(16, total // wanted) | 1)
    share = k / total
    spread = 4 * sqrt(drawn.size * share * (1 - share)) + 2
    zeros: list[int] | None = None
    while True:
        low, high = _bracket(drawn, drawn.size * share, spread, space)
        found = _scan(tensors, space, low, high, zeros, limit=min(LIMIT, total))
        zeros = found.zeros
        ranked = found.rank(k)
        if ranked is None and 0 < k - sum(found.below) <= sum(found.inside):
            key = _narrow(tensors, space, (low, high), k - sum(found.below))
            exact = _scan(tensors, space, key, key, zeros, limit=0)
            ranked = Ranked(value_of(key, space), exact.below, exact.inside, zeros)
        if ranked is not None:
            return ranked, found
        spread *= 4


def _bracket(drawn: Ints, centre: float, spread: float, space: KeyKind) -> tuple[int, int]:
    """Return the keys that enclose the wanted rank; key 0 is left out because zeros are counted apart."""
    first, last = int(centre - spread), int(centre + spread)
    low = int(drawn[first]) if 0 <= first < drawn.size else 1
    return max(low, 1), int(drawn[last]) if 0 <= last < drawn.size else space.infinity - 1


def _scan(
    tensors: Sequence[Tensor], space: KeyKind, low: int, high: int, zeros: list[int] | None, *, limit: int
) -> _Scan:
    """Count the keys below `low` and within [low, high] of each tensor and collect the latter up to `limit`.

    Zeros are counted and values checked to be finite only where `zeros` is not known from an earlier pass.
    """
    reader, collector = KeyReader(space), _Collector(space, limit)
    below, inside, counted = [0] * len(tensors), [0] * len(tensors), [0] * len(tensors)
    for index, tensor in enumerate(tensors):
        for keys in reader.read(tensor):
            if zeros is None:
                counted[index] += _check(keys, space, tensor)
            if high < low:
                continue
            below[index] += int(np.count_nonzero(keys < low))
            np.subtract(keys, low, out=keys)
            # keys below low wrap round to large numbers, so one comparison tests both ends
            taken = keys[keys <= high - low]
            inside[index] += taken.size
            collector.add(taken)
    return _Scan(space, below, inside, counted if zeros is None else zeros, collector.shifted(low))


class _Collector:
    """Gathers keys in one array of bounded size; untouched pages of it cost no memory."""

    def __init__(self, space: KeyKind, limit: int) -> None:
        self._kept = np.empty(limit, space.unsigned)
        self._fill, self._overflow = 0, limit == 0

    def add(self, keys: Ints) -> None:
        """Append keys unless the limit is passed."""
        end = self._fill + keys.size
        self._overflow = self._overflow or end > self._kept.size
        if not self._overflow:
            self._kept[self._fill : end] = keys
            self._fill = end

    def shifted(self, offset: int) -> Ints | None:
        """Return all keys plus `offset`, or None when there were too many."""
        if self._overflow:
            return None
        kept = self._kept[: self._fill]
        kept += kept.dtype.type(offset)
        return kept


def _check(keys: Ints, space: KeyKind, tensor: Tensor) -> int:
    """Return the number of zeros of one block; raises NotFinite."""
    if int(keys.max()) >= space.infinity:
        raise NotFinite(tensor)
    return 0 if int(keys.min()) else keys.size - int(np.count_nonzero(keys))


def _narrow(tensors: Sequence[Tensor], space: KeyKind, ends: tuple[int, int], rank: int) -> int:
    """Find the `rank`-th key within [low, high] by histograms of 16 bits at a time, collecting nothing."""
    low, high = ends
    reader = KeyReader(space)
    while low < high:
        shift = max(0, (high - low).bit_length() - 16)
        counts = np.zeros(BINS, np.int64)
        for tensor in tensors:
            for keys in reader.read(tensor):
                np.subtract(keys, low, out=keys)
                bins = keys[keys <= high - low] >> space.unsigned.type(shift)
                counts += np.bincount(bins.astype(np.int64), minlength=BINS)
        running = np.cumsum(counts)
        bin_ = int(np.searchsorted(running, rank))
        rank -= int(running[bin_] - counts[bin_])
        low, high = low + (bin_ << shift), min(high, low + ((bin_ + 1) << shift) - 1)
    return low


def untouched(zeros: int) -> LocalCut:
    """Return the cut that removes nothing from a tensor with so many zeros."""
    return LocalCut(0.0, zeros, zeros, zeros, zeros)


def local_cut(tensor: Tensor, k: int, zeros: int) -> LocalCut:
    """Cut one tensor alone to k zeros (k >= zeros already there)."""
    if k <= zeros:
        return untouched(zeros)
    ranked = kth_smallest([tensor], k)
    return LocalCut(ranked.value, ranked.equal[0], k - ranked.below[0], zeros, k)


def global_cuts(tensors: Sequence[Tensor], k: int, floor: int) -> tuple[float, list[LocalCut]]:
    """Choose the k smallest magnitudes of all tensors while each keeps its `floor` largest.

    Returns:
        The common threshold and one cut per tensor; nothing is removed when the zeros already reach k.

    Raises:
        NotFinite: a tensor holds NaN or infinity.
        Infeasible: the floors leave fewer than k places for zeros.
    """
    sizes = [tensor.numel() for tensor in tensors]
    free = [index for index, size in enumerate(sizes) if size > floor]
    zeros, found = _first_look(tensors, k, free)
    if k <= sum(zeros):
        return 0.0, [untouched(count) for count in zeros]
    most = [size - min(size - count, floor) for size, count in zip(sizes, zeros, strict=True)]
    if k > sum(most) or found is None:
        raise Infeasible(sum(most))
    free, ranked = _settle(tensors, k, most, free, *found)
    cuts = _common_cuts(free, ranked, _budget(k, most, free), zeros)
    return ranked.value, [
        cuts[index] if index in cuts else local_cut(tensor, most[index], zeros[index])
        for index, tensor in enumerate(tensors)
    ]


def _first_look(tensors: Sequence[Tensor], k: int, free: list[int]) -> tuple[list[int], tuple[Ranked, _Scan] | None]:
    """Count the zeros of all tensors and, in the same pass where possible, rank the free ones."""
    inside = set(free)
    small = [index for index in range(len(tensors)) if index not in inside]
    zeros = dict(zip(small, scan_zeros([tensors[index] for index in small]), strict=True))
    subset = [tensors[index] for index in free]
    budget = k - sum(zeros.values())
    possible = 0 < budget <= sum(tensor.numel() for tensor in subset)
    found = _search(subset, budget) if possible else None
    zeros |= dict(zip(free, scan_zeros(subset) if found is None else found[0].zeros, strict=True))
    return [zeros[index] for index in range(len(tensors))], found


def _settle(
    tensors: Sequence[Tensor], k: int, most: Sequence[int], free: list[int], ranked: Ranked, scan: _Scan
) -> tuple[list[int], Ranked]:
    """Take tensors out of the ranking that would lose more than `most`, until none is left that would.

    The threshold moves little when a tensor leaves, so the keys that the first pass collected usually still hold it
    and no further pass is needed.
    """
    scanned = free
    while True:
        dropped = ranked.dropped(_budget(k, most, free))
        sunk = {index for index, count in zip(free, dropped, strict=True) if count > most[index]}
        if not sunk:
            return free, ranked
        free = [index for index in free if index not in sunk]
        # those that left lost more than they may, so the rest has more to lose than before: free is never empty
        budget = _budget(k, most, free)
        reused = scan.of([scanned.index(index) for index in free]).rank(budget)
        if reused is None:
            scanned = free
            ranked, scan = _search([tensors[index] for index in free], budget)
        else:
            ranked = reused


def _budget(k: int, most: Sequence[int], free: Sequence[int]) -> int:
    """Return how many of the k zeros fall to the free tensors when all others lose as much as they can."""
    return k - sum(most) + sum(most[index] for index in free)


def _common_cuts(free: list[int], ranked: Ranked, budget: int, zeros: list[int]) -> dict[int, LocalCut]:
    """Return the cuts of the tensors under the one threshold, by tensor index."""
    counts = zip(free, ranked.below, ranked.equal, ranked.dropped(budget), strict=True)
    return {
        index: LocalCut(ranked.value, equal, dropped - below, zeros[index], dropped)
        for index, below, equal, dropped in counts
    }
