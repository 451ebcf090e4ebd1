"""Integer codes of weights in fewer bits than their width: rank by frequency, then Rice code.

The codes of pruned weights are far from uniform: magnitude pruning leaves a hole round zero and a tail that falls like
an exponential. Each code is replaced by its rank (0 is the most frequent one of the block), and ranks are Rice-coded
like gaps (`bitcode`): with parameter k, rank >> k in unary and k more bits. A table gives the number back, so any
distribution is served, two-sided ones and codebooks alike; a codebook is merely stored in another order.

A decoder computes t = ((rank >> k) + 1) 2^k + (rank mod 2^k) = rank + 2^k and looks it up: a table begins with 2^k
entries of padding. Where several codebooks share a stream it begins with one zero, which stands for "no value here".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bitcode import GapIndex, RiceIndex, encode_numbers
from exporters.values import Quantized

Array = NDArray[Any]
Index = RiceIndex | GapIndex | None

ALPHABET = 256
_OFFSET = 128  # of signed codes


@dataclass(frozen=True, slots=True)
class RankPlan:
    """How many bytes ranks take with the best parameter `k`, tables included."""

    k: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Ranked:
    """The stream of ranks, and the padded tables: one for each tensor with codebooks, one for all otherwise."""

    stream: RiceIndex
    tables: tuple[Array, ...]


def stored_symbols(tensors: Sequence[Quantized], index: Index) -> Array:
    """The values that are stored for `tensors`, in order: those the index keeps (with fillers), or all."""
    symbols: Array = np.concatenate([tensor.symbols for tensor in tensors])
    if index is None:
        return symbols
    kept: Array = symbols[np.concatenate([tensor.kept for tensor in tensors])]
    if isinstance(index, RiceIndex):
        return kept
    padded = np.zeros(index.count, symbols.dtype)
    padded[index.is_value] = kept
    return padded


def plan_ranks(tensors: Sequence[Quantized], index: Index) -> RankPlan | None:
    """The best parameter for the codes of a block, by their counts; None: they are no integer codes."""
    if not _ranks_apply(tensors, index):
        return None
    counts = [_counts(group, index) for group in _alphabets(tensors)]
    ordered = [np.sort(count)[::-1] for count in counts]
    total = np.sum(ordered, axis=0)
    width = 4 if tensors[0].centres is not None else 1
    used = sum(int(np.count_nonzero(count)) for count in counts)
    numbers = np.arange(ALPHABET)
    tries = [
        (-(-int((total * ((numbers >> k) + 1 + k)).sum()) // 8) + width * (used + sum(_padding(len(counts), k))), k)
        for k in range(8)
    ]
    nbytes, k = min(tries)
    return RankPlan(k, nbytes)


def encode_ranks(tensors: Sequence[Quantized], index: Index, k: int) -> Ranked:
    """Ranks of all stored codes with parameter `k`, and their tables.

    Raises:
        ValueError: the tensors hold no integer codes.
    """
    if not _ranks_apply(tensors, index):
        raise ValueError("only integer codes have ranks")
    ranks, tables = [], []
    alphabets = _alphabets(tensors)
    padding = _padding(len(alphabets), k)
    for group in alphabets:
        order = np.argsort(-_counts(group, index), kind="stable")  # codes, the most frequent first
        rank_of = np.empty(ALPHABET, np.int64)
        rank_of[order] = np.arange(ALPHABET)
        ranks.append(rank_of[_codes(group, index)])
        used = order[: int(ranks[-1].max()) + 1]
        centres = group[0].centres
        numbers = centres[used] if centres is not None else (used - _OFFSET).astype(np.int8)
        tables.append(np.concatenate([np.zeros(padding[0], numbers.dtype), numbers]))
    return Ranked(encode_numbers(np.concatenate(ranks), k), tuple(tables))


def _padding(tables: int, k: int) -> list[int]:
    """Entries before the numbers of each table."""
    return [2**k] if tables == 1 else [1] * tables


def _ranks_apply(tensors: Sequence[Quantized], index: Index) -> bool:
    """Codebooks, uniform codes and int8 numbers; codebooks of one tensor only where an index needs fillers."""
    first = tensors[0]
    integers = first.code[0] in "qc" or (first.code == "native" and first.restored.dtype == np.int8)
    return integers and not (isinstance(index, GapIndex) and len(tensors) > 1)


def _alphabets(tensors: Sequence[Quantized]) -> list[Sequence[Quantized]]:
    """Tensors that share a table: each codebook has its own."""
    return [tensors] if tensors[0].centres is None else [(tensor,) for tensor in tensors]


def _codes(group: Sequence[Quantized], index: Index) -> NDArray[np.int64]:
    symbols = stored_symbols(group, index).astype(np.int64)
    return symbols if group[0].centres is not None else symbols + _OFFSET


def _counts(group: Sequence[Quantized], index: Index) -> NDArray[np.int64]:
    return np.bincount(_codes(group, index), minlength=ALPHABET)
