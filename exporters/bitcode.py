"""Bit-level codes of packed weights: planes, Rice-coded gaps, 8-bit gaps. Plain arithmetic on arrays.

Streams are little-endian: bit i is bit i mod 8 of byte i div 8. A code of 1, 2, 4 or 8 bits fills its byte from the low
end; other widths are split into planes of those widths, the widest plane holding the lowest bits.

Rice code (R. F. Rice, 1979) of the gaps g_i = p_i - p_(i-1) - 1 between non-zero positions, parameter k:
q_i = g_i >> k in unary (q_i zeros, then a one), r_i = g_i mod 2^k in k bits. With P_i the 1-based position of the i-th
one, p_i = 2^k P_i + sum_(j<=i) (r_j + 1 - 2^k) - 1. For k = 0 the unary stream is the bit mask itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

MAX_K = 12
INT32_LIMIT = 2**31


def planes(width: int) -> tuple[tuple[int, int], ...]:
    """(bits, shift) of the planes of a code of `width` bits, lowest bits first: 7 gives (4, 0), (2, 4), (1, 6).

    Raises:
        ValueError: a width outside 0..16.
    """
    if not 0 <= width <= 16:
        raise ValueError(f"code width {width} is outside 0..16")
    found, shift = [], 0
    for bits in (8, 8, 4, 2, 1):
        if width - shift >= bits:
            found.append((bits, shift))
            shift += bits
    return tuple(found)


def pack_codes(codes: Array, bits: int) -> Bytes:
    """`codes` (each below 2^bits) in bytes, 8 / bits to a byte; `bits` is 1, 2, 4 or 8."""
    small = codes.astype(np.uint8)
    if bits == 8:
        return small
    if bits == 1:
        return np.packbits(small, bitorder="little")
    per_byte = 8 // bits
    padded = np.zeros(-(-len(small) // per_byte) * per_byte, np.uint8)
    padded[: len(small)] = small
    shifted = padded.reshape(-1, per_byte) << (np.arange(per_byte, dtype=np.uint8) * bits)
    packed: Bytes = np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8)
    return packed


def unpack_codes(data: Bytes, bits: int, count: int) -> NDArray[np.int64]:
    """The inverse of `pack_codes`."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    codes = (data[:, None] >> shifts) & (2**bits - 1)
    wide: NDArray[np.int64] = codes.reshape(-1)[:count].astype(np.int64)
    return wide


def split_planes(codes: Array, width: int) -> tuple[Bytes, ...]:
    """One packed byte tensor for each plane of `planes(width)`."""
    wide = codes.astype(np.int64)
    return tuple(pack_codes((wide >> shift) & (2**bits - 1), bits) for bits, shift in planes(width))


def join_planes(data: tuple[Bytes, ...], width: int, count: int) -> NDArray[np.int64]:
    """The inverse of `split_planes`."""
    total = np.zeros(count, np.int64)
    for part, (bits, shift) in zip(data, planes(width), strict=True):
        total += unpack_codes(part, bits, count) << shift
    return total


def gaps(positions: Array) -> NDArray[np.int64]:
    """Zeros before each of the increasing `positions`, counted from the one before."""
    wide: NDArray[np.int64] = positions.astype(np.int64)
    distances: NDArray[np.int64] = wide - np.concatenate([np.array([-1], np.int64), wide[:-1]]) - 1
    return distances


def rice_bits(gap: Array, k: int) -> int:
    """Bits of the Rice code with parameter `k`: sum(g >> k) + n (1 + k)."""
    return int((gap >> k).sum()) + len(gap) * (1 + k)


def best_k(gap: Array) -> int:
    """The parameter with the fewest bits; the smaller one where two are equal."""
    return min(range(MAX_K + 1), key=lambda k: (rice_bits(gap, k), k))


@dataclass(frozen=True, slots=True)
class RiceIndex:
    """Non-zero positions of a flat array of `size` elements, coded with parameter `k`.

    `unary` holds `length` bits (a multiple of 8; the bit mask when k is 0), `remainders` the planes of k-bit codes.
    """

    k: int
    size: int
    count: int
    length: int
    unary: Bytes
    remainders: tuple[Bytes, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all streams."""
        return len(self.unary) + sum(len(plane) for plane in self.remainders)


def fits_int32(count: int, size: int, k: int) -> bool:
    """Whether the decoder's 32-bit arithmetic cannot overflow."""
    return bool(count * 2**k + size < INT32_LIMIT)


def encode_rice(positions: Array, size: int, k: int | None = None) -> RiceIndex:
    """Code the increasing `positions` (at least one) in an array of `size`; `k` defaults to the best one.

    Example:
        positions 3, 4, 11, 19 of 20: gaps 3, 0, 6, 7; k = 2; unary byte 2B, remainder byte E3.

    Raises:
        ValueError: 32-bit arithmetic would overflow.
    """
    gap = gaps(positions)
    k = best_k(gap) if k is None else k
    if not fits_int32(len(gap), size, k):
        raise ValueError(f"{len(gap)} of {size} positions with k = {k} overflow 32-bit arithmetic")
    ones = positions.astype(np.int64) if k == 0 else np.cumsum((gap >> k) + 1) - 1
    bits = size if k == 0 else int(ones[-1]) + 1
    length = -(-bits // 8) * 8
    mask = np.zeros(length, np.uint8)
    mask[ones] = 1
    return RiceIndex(k, size, len(gap), length, pack_codes(mask, 1), split_planes(gap & (2**k - 1), k))


def decode_rice(index: RiceIndex) -> NDArray[np.int64]:
    """The positions that `encode_rice` coded, by the formula of the module docstring."""
    ones = np.flatnonzero(unpack_codes(index.unary, 1, index.length))
    if index.k == 0:
        return ones
    remainder = join_planes(index.remainders, index.k, index.count)
    positions: NDArray[np.int64] = (ones + 1) * 2**index.k + np.cumsum(remainder + 1 - 2**index.k) - 1
    return positions


def encode_numbers(numbers: Array, k: int) -> RiceIndex:
    """Rice code of any non-negative `numbers` (at least one), as gaps between the ones of its unary stream."""
    ones = np.cumsum(numbers.astype(np.int64) + 1)
    return encode_rice(ones - 1, int(ones[-1]), k)


def decode_numbers(code: RiceIndex) -> NDArray[np.int64]:
    """The numbers that `encode_numbers` coded."""
    return gaps(decode_rice(code))


@dataclass(frozen=True, slots=True)
class GapIndex:
    """Distances from each entry to the one before, as bytes: the first entry counts from place 0.

    A filler (255, value 0) stands for a place without a value on the way; `is_value` marks the entries that hold one.
    """

    size: int
    entries: Bytes
    is_value: NDArray[np.bool_]

    @property
    def count(self) -> int:
        """Entries, fillers included."""
        return len(self.entries)

    @property
    def nbytes(self) -> int:
        """Bytes of the gap stream."""
        return len(self.entries)


def encode_gap8(positions: Array, size: int) -> GapIndex:
    """Code the increasing `positions` (at least one) with a byte per distance and fillers for those above 255."""
    wide = positions.astype(np.int64)
    distance = np.diff(wide, prepend=0)
    fillers = np.maximum(distance - 1, 0) // 255
    last = np.cumsum(fillers + 1) - 1
    entries = np.full(int(last[-1]) + 1, 255, np.uint8)
    entries[last] = distance - 255 * fillers
    is_value = np.zeros(len(entries), np.bool_)
    is_value[last] = True
    return GapIndex(size, entries, is_value)


def decode_gap8(index: GapIndex) -> NDArray[np.int64]:
    """The positions that `encode_gap8` coded."""
    positions: NDArray[np.int64] = np.cumsum(index.entries.astype(np.int64))
    return positions[index.is_value]


def entropy_bits(counts: Array) -> float:
    """Order-0 entropy in bits of a sequence with these symbol counts: sum n_i log2(N / n_i)."""
    present = counts[counts > 0].astype(np.float64)
    return float((present * np.log2(present.sum() / present)).sum()) if len(present) else 0.0


def mask_entropy_bits(count: int, size: int) -> float:
    """Order-0 entropy in bits of a mask with `count` ones among `size` places."""
    return entropy_bits(np.array([count, size - count]))
