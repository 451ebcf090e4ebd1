"""Choice of code and index for each tensor, and of the small tensors that share one decoder.

All sizes are arithmetic: payload (index, values, codebook, scale) from the codes' formulas, plus what the decoder's
nodes and small constants take in the file.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bitcode import (
    GapIndex,
    RiceIndex,
    best_k,
    encode_gap8,
    encode_rice,
    entropy_bits,
    fits_int32,
    gaps,
    mask_entropy_bits,
    rice_bits,
)
from exporters.decoder import Block
from exporters.ranks import plan_ranks
from exporters.values import Quantized

Array = NDArray[Any]

BLOCK_BYTES = 900  # nodes and constants of one decoder with an index (measured on written files)
PLAIN_BLOCK_BYTES = 250  # the same without an index
RANK_BYTES = 450  # further nodes and constants where ranks are coded
MEMBER_BYTES = 90  # piece, Reshape and shape of each tensor cut out of a shared decoder
JOIN_BELOW = 1 << 18  # larger tensors have a decoder of their own
BLOCK_LIMIT = 1 << 21  # elements of a shared decoder: its working memory stays small
GAP8_ELEMENTS = 25_000_000  # from here on (100 MB of fp32) the byte-gap index needs far less memory while loading


@dataclass(frozen=True, slots=True)
class Layout:
    """Decoders to write, tensors that are all zero, and names that are smaller as they are."""

    blocks: tuple[Block, ...]
    zeros: tuple[Quantized, ...]
    dense: tuple[str, ...]


def plan_layout(tensors: Iterable[Quantized], lean: Container[str] = ()) -> Layout:
    """The smallest file for `tensors`, by the sizes of this module.

    Tensors named in `lean`, and those of `GAP8_ELEMENTS` and more, get the decoder that needs the least memory.
    """
    blocks: list[Block] = []
    zeros: list[Quantized] = []
    dense: list[str] = []
    small: list[Quantized] = []
    for tensor in tensors:
        if not tensor.kept.any():
            zeros.append(tensor)
        elif tensor.name in lean or tensor.restored.size >= GAP8_ELEMENTS:
            _place([tensor], blocks, dense, lean=True)
        elif tensor.restored.size < JOIN_BELOW:
            small.append(tensor)
        else:
            _place([tensor], blocks, dense)
    for group in _groups(small):
        _place(group, blocks, dense)
    return Layout(tuple(blocks), tuple(zeros), tuple(dense))


def treatment_of_zeros(nonzero: int, size: int, bits: int, *, lean: bool = False) -> tuple[bool, bool]:
    """(zeros are left out of the value stream, a codebook reserves a code for zero) for a tensor before it is coded."""
    saved = (size - nonzero) * bits - mask_entropy_bits(nonzero, size)
    masked = saved > 8 * BLOCK_BYTES or (saved > 0 and size < JOIN_BELOW)
    return masked, lean or size >= GAP8_ELEMENTS or (not masked and nonzero < size)


def _place(group: list[Quantized], blocks: list[Block], dense: list[str], *, lean: bool = False) -> None:
    block = _lean_block(group[0]) if lean else _block(tuple(group))
    if total_bytes(block) < sum(tensor.restored.nbytes for tensor in group):
        blocks.append(block)
    elif len(group) == 1:
        dense.append(group[0].name)
    else:
        for tensor in group:
            _place([tensor], blocks, dense)


def _groups(tensors: list[Quantized]) -> Iterator[list[Quantized]]:
    """Tensors of one code and dtype, of similar density, for as long as sharing a decoder saves bytes."""
    for _, same in groupby(sorted(tensors, key=_kind), key=_kind):
        waiting: list[Quantized] = []
        for tensor in sorted(same, key=lambda t: (_density(t), t.name)):
            if waiting and not _better_together(waiting, tensor):
                yield waiting
                waiting = []
            waiting.append(tensor)
        yield waiting


def _kind(tensor: Quantized) -> tuple[str, str, bool]:
    return family(tensor.code), tensor.restored.dtype.str, _indexed_pays(tensor)


def family(code: str) -> str:
    """Codes of one family can share a decoder: all codebooks, all uniform codes, fp16, unchanged numbers."""
    return code.rstrip("0123456789") if code != "f16" else code


def _density(tensor: Quantized) -> float:
    return float(np.count_nonzero(tensor.kept)) / tensor.kept.size


def _better_together(group: list[Quantized], more: Quantized) -> bool:
    together = (*group, more)
    if sum(tensor.restored.size for tensor in together) > BLOCK_LIMIT:
        return False
    apart = total_bytes(_block(tuple(group))) + min(total_bytes(_block((more,))), more.restored.nbytes)
    return total_bytes(_block(together)) < apart


def _indexed_pays(tensor: Quantized) -> bool:
    """Whether leaving out the zeros saves more than their index costs (unless they are not kept anyway)."""
    if tensor.kept.all():
        return False
    kept = np.flatnonzero(tensor.kept)
    gap = gaps(kept)
    index = rice_bits(gap, best_k(gap)) / 8
    if tensor.centres is not None and not _stands_for_zero(tensor):
        return True  # the codebook does not hold the zeros
    return bool(index + BLOCK_BYTES - PLAIN_BLOCK_BYTES < (tensor.kept.size - len(kept)) * tensor.bits / 8)


def _stands_for_zero(tensor: Quantized) -> bool:
    return bool(tensor.centres is not None and tensor.centres[0] == 0 and not tensor.symbols[~tensor.kept].any())


def _block(tensors: tuple[Quantized, ...]) -> Block:
    tensors = tuple(sorted(tensors, key=lambda tensor: tensor.code))
    kept = np.concatenate([tensor.kept for tensor in tensors])
    index = _index(np.flatnonzero(kept), len(kept)) if _indexed_pays(tensors[0]) else None
    raw = Block(tensors, index)
    plan = plan_ranks(tensors, index)
    pays = plan is not None and plan.nbytes + RANK_BYTES < _value_bytes(raw)
    return Block(tensors, index, plan.k) if plan and pays else raw


def _lean_block(tensor: Quantized) -> Block:
    """Byte gaps and values at their full width: few intermediates while a runtime unpacks them."""
    indexed = _indexed_pays(tensor)
    return Block((tensor,), encode_gap8(np.flatnonzero(tensor.kept), tensor.kept.size) if indexed else None)


def _index(positions: Array, size: int) -> RiceIndex | GapIndex:
    k = best_k(gaps(positions))
    if not fits_int32(len(positions), size, k):
        return encode_gap8(positions, size)
    return encode_rice(positions, size, k)


def index_bytes(block: Block) -> int:
    """Bytes of the index streams."""
    return block.index.nbytes if block.index is not None else 0


def stored_count(tensor: Quantized, block: Block) -> int:
    """A tensor's values in the value stream: the kept ones, with fillers; all of them without an index."""
    if block.index is None:
        return tensor.kept.size
    return block.index.count if len(block.tensors) == 1 else int(np.count_nonzero(tensor.kept))


def side_bytes(tensor: Quantized) -> int:
    """Bytes of a tensor's codebook or scale."""
    return (tensor.centres.nbytes if tensor.centres is not None else 0) + _scale_bytes(tensor)


def _scale_bytes(tensor: Quantized) -> int:
    return tensor.scale.half.nbytes + 4 if tensor.scale is not None else 0


def _value_bytes(block: Block) -> int:
    """Bytes of values and codebooks, or of ranks and their tables."""
    if block.rank_k is not None:
        plan = plan_ranks(block.tensors, block.index)
        if plan is not None:
            return plan.nbytes
    values = sum(stored_count(tensor, block) * tensor.bits for tensor in block.tensors)
    return -(-values // 8) + sum(tensor.centres.nbytes for tensor in block.tensors if tensor.centres is not None)


def payload_bytes(block: Block) -> int:
    """Bytes of index, values, codebooks and scales."""
    return index_bytes(block) + _value_bytes(block) + sum(map(_scale_bytes, block.tensors))


def total_bytes(block: Block) -> int:
    """Payload and what the nodes take."""
    base = PLAIN_BLOCK_BYTES if block.index is None else BLOCK_BYTES
    base += RANK_BYTES if block.rank_k is not None else 0
    return payload_bytes(block) + base + MEMBER_BYTES * (len(block.tensors) - 1)


def bound_bytes(tensor: Quantized) -> float:
    """Order-0 entropy of a tensor's mask and stored values, and its codebook or scale, in bytes.

    Floating-point numbers (native and f16 codes) count at their full width.
    """
    kept = int(np.count_nonzero(tensor.kept))
    size = tensor.kept.size
    symbols = tensor.symbols[tensor.kept]
    if tensor.code in ("native", "f16") and symbols.dtype.kind == "f":
        values = float(kept * tensor.bits)
    else:
        values = entropy_bits(np.unique(symbols, return_counts=True)[1])
    everything = mask_entropy_bits(kept, size) + values
    return min(everything / 8, size * tensor.bits / 8) + side_bytes(tensor)
