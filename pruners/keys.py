"""Floating-point tensors seen as integers that sort like magnitudes, block by block and without copies.

The bits of an IEEE float without the sign, `key = bits & 0x7fff...`, order exactly like abs(w); 0 is the key of
both zeros, and every key from that of infinity upwards is not finite. Blocks of 131,072 elements stay inside the
second-level cache, so that several integer passes over a block cost little more than one read of the memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 131_072
PROBES = 256
Ints = NDArray[Any]


@dataclass(frozen=True, slots=True)
class KeyKind:
    """Integer view of one floating-point type: `mask` clears the sign, `infinity` is the first key not finite."""

    dtype: torch.dtype
    torch_int: torch.dtype
    signed: np.dtype[Any]
    unsigned: np.dtype[Any]
    mask: int
    infinity: int

    @property
    def bits(self) -> int:
        """Width of one element in bits."""
        return self.signed.itemsize * 8


def _kind(dtype: torch.dtype, torch_int: torch.dtype, bits: int, infinity: int) -> KeyKind:
    signed, unsigned = np.dtype(f"i{bits // 8}"), np.dtype(f"u{bits // 8}")
    return KeyKind(dtype, torch_int, signed, unsigned, (1 << (bits - 1)) - 1, infinity)


KINDS: dict[torch.dtype, KeyKind] = {
    torch.float16: _kind(torch.float16, torch.int16, 16, 0x7C00),
    torch.bfloat16: _kind(torch.bfloat16, torch.int16, 16, 0x7F80),
    torch.float32: _kind(torch.float32, torch.int32, 32, 0x7F80_0000),
    torch.float64: _kind(torch.float64, torch.int64, 64, 0x7FF0_0000_0000_0000),
}


def common_kind(tensors: Iterable[Tensor]) -> KeyKind:
    """Return the narrowest key space that holds all magnitudes exactly (fp16 beside bf16 needs fp32)."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) == 1:
        return KINDS[dtypes.pop()]
    return KINDS[torch.float64 if torch.float64 in dtypes else torch.float32]


def _by_stride(tensor: Tensor) -> Tensor:
    """Permute so that a dense tensor of any memory format (channels_last ...) becomes contiguous."""
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Cut a tensor into sub-tensors of at most CHUNK elements (or single elements' rows), in logical order."""
    if tensor.numel() <= CHUNK:
        if tensor.numel():
            yield tensor
    elif tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), CHUNK)
    elif tensor[0].numel() > CHUNK:
        for row in tensor:
            yield from _pieces(row)
    else:
        yield from torch.split(tensor, CHUNK // tensor[0].numel())


def blocks(tensor: Tensor, *, logical: bool = False) -> Iterator[tuple[Ints, Tensor | None]]:
    """Yield (signed integer array, piece) for every block of a tensor.

    CPU memory is shown without a copy and `piece` is None; otherwise the array is a copy of `piece` and a change
    must be written back with `store`. Blocks come in memory order, with `logical` in row-major index order.
    """
    bits = tensor.detach().view(KINDS[tensor.dtype].torch_int)
    if not logical:
        bits = _by_stride(bits)
    if bits.device.type == "cpu" and bits.is_contiguous():
        flat: Ints = bits.view(-1).numpy()
        for start in range(0, flat.size, CHUNK):
            yield flat[start : start + CHUNK], None
        return
    for piece in _pieces(bits):
        yield piece.cpu().contiguous().view(-1).numpy(), piece


def store(block: Ints, piece: Tensor | None) -> None:
    """Write a changed block back to where it was copied from."""
    if piece is not None:
        piece.copy_(torch.from_numpy(block).view(piece.shape))


def widen(keys: Ints, kind: KeyKind, space: KeyKind) -> Ints:
    """Turn keys of one type into the keys of the same values in a wider type."""
    if kind is space:
        return keys
    if kind.dtype is torch.bfloat16:
        keys, kind = keys.astype(np.uint32) << np.uint32(16), KINDS[torch.float32]
    values = keys.view(f"f{kind.signed.itemsize}")
    return values.astype(f"f{space.signed.itemsize}").view(space.unsigned)


class KeyReader:
    """Reads the keys of tensors block by block through one small buffer per element type."""

    def __init__(self, space: KeyKind) -> None:
        self.space = space
        self._buffers: dict[np.dtype[Any], Ints] = {}

    def read(self, tensor: Tensor) -> Iterator[Ints]:
        """Yield the unsigned keys of a tensor; each array is only valid until the next one is asked for."""
        kind = KINDS[tensor.dtype]
        buffer = self._buffers.setdefault(kind.signed, np.empty(CHUNK, kind.signed))
        for block, _ in blocks(tensor):
            signed = buffer[: block.size]
            np.bitwise_and(block, kind.mask, out=signed)
            yield widen(signed.view(kind.unsigned), kind, self.space)


def sample(tensors: Sequence[Tensor], space: KeyKind, step: int) -> Ints:
    """Return every `step`-th key over all tensors (the distance carries on from one tensor to the next), sorted."""
    parts: list[Ints] = []
    offset = step // 2
    for tensor in tensors:
        parts += _strided(tensor, offset, step, space)
        offset = (offset - tensor.numel()) % step
    keys: Ints = np.concatenate(parts) if parts else np.empty(0, space.unsigned)
    keys.sort()
    return keys


def _strided(tensor: Tensor, offset: int, step: int, space: KeyKind) -> Iterator[Ints]:
    kind = KINDS[tensor.dtype]
    bits = _by_stride(tensor.detach().view(kind.torch_int))
    for piece in [bits] if bits.is_contiguous() else _pieces(bits):
        taken = piece.reshape(-1)[offset::step] if offset < piece.numel() else piece.reshape(-1)[:0]
        offset = (offset - piece.numel()) % step
        keys = (taken.cpu().numpy() & kind.signed.type(kind.mask)).view(kind.unsigned)
        yield widen(keys, kind, space)


def value_of(key: int, space: KeyKind) -> float:
    """Return the magnitude that a key stands for."""
    if space.dtype is torch.bfloat16:
        key, space = key << 16, KINDS[torch.float32]
    return float(np.array([key], space.unsigned).view(f"f{space.signed.itemsize}")[0])


def first_key(dtype: torch.dtype, value: float, *, above: bool) -> int:
    """Return the smallest key of a type whose magnitude is >= value, with `above` > value; value >= 0, finite."""
    if dtype is torch.bfloat16:
        return (first_key(torch.float32, value, above=above) + 0xFFFF) >> 16
    kind = KINDS[dtype]
    with np.errstate(over="ignore"):
        nearest = np.array([value], np.float64).astype(f"f{kind.signed.itemsize}")
    rounded, key = float(nearest[0]), int(nearest.view(kind.unsigned)[0])
    return key + (rounded < value or (above and rounded == value))


def zero_below(tensor: Tensor, cut: int) -> int:
    """Set every element whose key is below `cut` (>= 1) to +0.0 in place; return how many non-zeros stay.

    Keys and cut fit the signed type, so `(cut - 1 - key) >> (bits - 1)` is all ones where the element stays and 0
    where it goes; AND with it writes +0.0, never -0.0 or NaN.
    """
    kind = KINDS[tensor.dtype]
    buffer = np.empty(min(CHUNK, tensor.numel()), kind.signed)
    nonzero = 0
    for block, piece in blocks(tensor):
        stays = buffer[: block.size]
        np.bitwise_and(block, kind.mask, out=stays)
        np.subtract(cut - 1, stays, out=stays)
        np.right_shift(stays, kind.bits - 1, out=stays)
        np.bitwise_and(block, stays, out=block)
        nonzero += int(np.count_nonzero(block))
        store(block, piece)
    return nonzero


def zero_ties(tensor: Tensor, key: int, count: int) -> int:
    """Set the first `count` elements (row-major order) with exactly this key to +0.0; return how many were left."""
    kind = KINDS[tensor.dtype]
    for block, piece in blocks(tensor, logical=True):
        if count <= 0:
            break
        ties = np.flatnonzero((block & kind.signed.type(kind.mask)) == key)[:count]
        block[ties] = 0
        count -= ties.size
        store(block, piece)
    return count


def count_zero(tensor: Tensor) -> int:
    """Return the exact number of zeros (of either sign) in a tensor."""
    reader = KeyReader(KINDS[tensor.dtype])
    return tensor.numel() - sum(int(np.count_nonzero(keys)) for keys in reader.read(tensor))


def probe(tensor: Tensor, cut: int, seed: int) -> int:
    """Fold up to 256 evenly spaced elements into a checksum, counting those with a key below `cut` as zero.

    The result is the same before and after `zero_below(tensor, cut)`, so that a plan recognises its weights.
    """
    kind = KINDS[tensor.dtype]
    count = min(PROBES, tensor.numel())
    places = np.arange(count, dtype=np.int64) * tensor.numel() // max(count, 1)
    bits = _gather(tensor.detach().view(kind.torch_int), places).astype(np.int64)
    bits[(bits & kind.mask) < cut] = 0
    return zlib.crc32(bits.astype("<i8").tobytes(), seed)


def _gather(bits: Tensor, places: NDArray[np.int64]) -> Ints:
    """Return the elements at row-major places without copying the rest."""
    if bits.device.type == "cpu" and bits.is_contiguous():
        found: Ints = bits.view(-1).numpy()[places]
        return found
    where = tuple(torch.from_numpy(axis).to(bits.device) for axis in np.unravel_index(places, tuple(bits.shape)))
    picked: Ints = bits[where].cpu().numpy()
    return picked
