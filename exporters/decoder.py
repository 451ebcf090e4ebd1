"""ONNX sub-graphs that rebuild weights from packed bytes with standard operators and static shapes.

A block is one large tensor, or several small ones coded as if they were one array: the decoder (about 1 kB) is then
paid once, and each tensor is cut out with Slice and Reshape. Runtimes evaluate the decoder once, while they load the
model, because all its inputs are constants. The last operator's output carries the name of the weight, so that its
consumers stay as they are.

Bits are expanded by table look-up (`Gather` of a [256, 8/w] table by bytes): no bit operators, which some runtimes
lack or compute wrongly. `NonZero` and `Compress` are avoided: ONNX Runtime does not fold them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from exporters.bitcode import GapIndex, RiceIndex, planes, split_planes
from exporters.values import Quantized

Array = NDArray[Any]
REDUCTION_OPSET = 18


class Emitter:
    """Collects decoder nodes and their constants; equal constants are stored once."""

    def __init__(self, opset: int, prefix: str) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: dict[tuple[bytes, str, tuple[int, ...]], TensorProto] = {}  # by digest, dtype, shape
        self._prefix = prefix
        self._count = 0
        self._tables: dict[int, str] = {}

    def name(self) -> str:
        """A fresh name of a value."""
        self._count += 1
        return f"{self._prefix}{self._count}"

    def constant(self, array: Array) -> str:
        """The initializer that holds `array` (rank 0 stays rank 0)."""
        key = (hashlib.sha256(array.tobytes()).digest(), array.dtype.str, array.shape)
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, self.name())
        return self.constants[key].name

    def int64(self, *values: int) -> str:
        """A one-dimensional int64 constant."""
        return self.constant(np.array(values, np.int64))

    def int32(self, value: int) -> str:
        """An int32 constant of shape [1]."""
        return self.constant(np.array([value], np.int32))

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        output = output or self.name()
        node = helper.make_node(kind, list(inputs), [output], **attributes)
        self.nodes.append(node)
        return output

    def cast(self, value: str, dtype: Any, output: str | None = None) -> str:
        """`value` as numpy `dtype`."""
        return self.op("Cast", value, output=output, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def filled(self, shape: Sequence[int], number: Any, dtype: Any, output: str | None = None) -> str:
        """A tensor of `shape` with `number` everywhere."""
        value = numpy_helper.from_array(np.array([number], dtype))
        return self.op("ConstantOfShape", self.int64(*shape), output=output, value=value)

    def cut(self, value: str, begin: int, end: int) -> str:
        """`value`[begin:end] along the first axis."""
        return self.op("Slice", value, self.int64(begin), self.int64(end))

    def split(self, value: str, sizes: Sequence[int]) -> list[str]:
        """`value` cut into consecutive pieces of `sizes` along the first axis."""
        if len(sizes) == 1:
            return [value]
        names = [self.name() for _ in sizes]
        self.nodes.append(helper.make_node("Split", [value, self.int64(*sizes)], names))
        return names

    def cumsum(self, value: str) -> str:
        """Running sum of a one-dimensional value."""
        return self.op("CumSum", value, self.constant(np.array(0, np.int64)))

    def expand(self, data: Array, bits: int, count: int) -> str:
        """int32 [count]: the codes of `bits` bits in the bytes `data`."""
        wide = self.cast(self.constant(data), np.int32)
        if bits < 8:
            wide = self.op("Reshape", self.op("Gather", self._table(bits), wide), self.int64(-1))
        return wide if count == len(data) * (8 // bits) else self.cut(wide, 0, count)

    def _table(self, bits: int) -> str:
        if bits not in self._tables:
            shifts = np.arange(8 // bits, dtype=np.uint8) * bits
            table = (np.arange(256, dtype=np.uint8)[:, None] >> shifts) & (2**bits - 1)
            self._tables[bits] = self.cast(self.constant(table.astype(np.uint8)), np.int32)
        return self._tables[bits]

    def codes(self, parts: Sequence[Array], width: int, count: int) -> str:
        """int32 [count]: codes of `width` bits from their planes."""
        total = ""
        for data, (bits, shift) in zip(parts, planes(width), strict=True):
            plane = self.expand(data, bits, count)
            total = self.op("Add", total, self.op("Mul", plane, self.int32(2**shift))) if total else plane
        return total


@dataclass(frozen=True, slots=True)
class Block:
    """Tensors of one dtype and kind of code that share an index; `index` None: every element is stored.

    Tensors of one code stand next to each other.
    """

    tensors: tuple[Quantized, ...]
    index: RiceIndex | GapIndex | None

    @property
    def size(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.restored.size for tensor in self.tensors)


def emit_block(emitter: Emitter, block: Block) -> None:
    """Append the decoder of `block`; its outputs carry the names of the tensors."""
    values, dtype = _emit_values(emitter, block)
    flat = _emit_places(emitter, block, values, dtype)
    pieces = emitter.split(flat, [tensor.restored.size for tensor in block.tensors])
    for tensor, piece in zip(block.tensors, pieces, strict=True):
        _emit_tensor(emitter, tensor, piece, dtype, zero_first=block.index is not None)


def emit_zero(emitter: Emitter, tensor: Quantized) -> None:
    """Append the decoder of a tensor without a non-zero."""
    emitter.filled(tensor.restored.shape, 0, tensor.restored.dtype, output=tensor.name)


def stored_symbols(tensors: Sequence[Quantized], index: RiceIndex | GapIndex | None) -> Array:
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


def _emit_values(emitter: Emitter, block: Block) -> tuple[str, Any]:
    """(stored values as numbers, or codes of several codebooks as int32; their dtype)."""
    parts, dtype = [], np.dtype(np.float32)
    for code, run in groupby(block.tensors, key=lambda tensor: tensor.code):
        tensors = tuple(run)
        symbols = stored_symbols(tensors, block.index)
        if code.startswith("cb"):
            part, dtype = _emit_codes(emitter, block, tensors[0], symbols)
        else:
            part, dtype = _emit_numbers(emitter, code, symbols)
        parts.append(part)
    return parts[0] if len(parts) == 1 else emitter.op("Concat", *parts, axis=0), dtype


def _emit_numbers(emitter: Emitter, code: str, symbols: Array) -> tuple[str, Any]:
    if code == "native":
        return emitter.constant(symbols), symbols.dtype
    if code == "f16":
        return emitter.cast(emitter.constant(symbols), np.float32), np.dtype(np.float32)
    bits = int(code[1:])
    if bits == 8:
        return emitter.cast(emitter.constant(symbols.astype(np.int8)), np.float32), np.dtype(np.float32)
    largest = 2 ** (bits - 1) - 1
    codes = emitter.codes(split_planes(symbols + largest, bits), bits, len(symbols))
    return emitter.cast(emitter.op("Sub", codes, emitter.int32(largest)), np.float32), np.dtype(np.float32)


def _emit_codes(emitter: Emitter, block: Block, tensor: Quantized, symbols: Array) -> tuple[str, Any]:
    """A single tensor's codes are looked up at once, those of several tensors at their places, each in its own book."""
    codes = emitter.codes(split_planes(symbols, tensor.bits), tensor.bits, len(symbols))
    if len(block.tensors) == 1:
        return emitter.op("Gather", _codebook(emitter, tensor), codes), np.dtype(np.float32)
    if block.index is not None:  # 0 marks the places without a value
        codes = emitter.op("Add", codes, emitter.int32(1))
    return codes, np.dtype(np.int32)


def _codebook(emitter: Emitter, tensor: Quantized, *, zero_first: bool = False) -> str:
    if tensor.centres is None:
        raise ValueError(f"{tensor.name} has no codebook")
    zero = np.zeros(1, np.float32)
    return emitter.constant(np.concatenate([zero, tensor.centres]) if zero_first else tensor.centres)


def _emit_places(emitter: Emitter, block: Block, values: str, dtype: Any) -> str:
    """[N]: the values at their places, zeros elsewhere."""
    index = block.index
    if index is None:
        return values
    if isinstance(index, RiceIndex) and index.k == 0:
        return _emit_by_mask(emitter, index, values, dtype)
    places = _emit_gaps(emitter, index) if isinstance(index, GapIndex) else _emit_rice(emitter, index)
    return emitter.op("ScatterElements", emitter.filled([block.size], 0, dtype), places, values)


def _emit_by_mask(emitter: Emitter, index: RiceIndex, values: str, dtype: Any) -> str:
    """Each place looks up its value by its rank among the ones (0 where the mask has none)."""
    rank = _emit_ranks(emitter, index)
    if index.length != index.size:
        rank = emitter.cut(rank, 0, index.size)
    zero = emitter.constant(np.zeros(1, dtype))
    return emitter.op("Gather", emitter.op("Concat", zero, values, axis=0), rank)


def _emit_ranks(emitter: Emitter, index: RiceIndex) -> str:
    """int32 [length]: 1, 2, 3 .. at the ones of the unary stream, 0 at its zeros."""
    bits = emitter.expand(index.unary, 1, index.length)
    return emitter.op("Mul", emitter.cumsum(bits), bits)


def _emit_rice(emitter: Emitter, index: RiceIndex) -> str:
    """int32 [n]: p_i = 2^k P_i + sum (r_j + 1 - 2^k) - 1."""
    ranks = _emit_ranks(emitter, index)
    numbers = emitter.cumsum(emitter.filled([index.length], 1, np.int32))
    # Every zero of the stream writes to slot 0, which is cut off; duplicates are legal with "max" only (opset 18).
    how = {"reduction": "max"} if emitter.opset >= REDUCTION_OPSET else {}
    slots = emitter.filled([index.count + 1], 0, np.int32)
    ones = emitter.cut(emitter.op("ScatterElements", slots, ranks, numbers, **how), 1, index.count + 1)
    step = 2**index.k
    remainder = emitter.codes(index.remainders, index.k, index.count)
    drift = emitter.cumsum(emitter.op("Add", remainder, emitter.int32(1 - step)))
    base = emitter.op("Mul", ones, emitter.int32(step))
    return emitter.op("Sub", emitter.op("Add", base, drift), emitter.int32(1))


def _emit_gaps(emitter: Emitter, index: GapIndex) -> str:
    """int32 [entries]: running sum of gap + 1, less 1."""
    gap = emitter.cast(emitter.constant(index.entries), np.int32)
    one = emitter.int32(1)
    return emitter.op("Sub", emitter.cumsum(emitter.op("Add", gap, one)), one)


def _emit_tensor(emitter: Emitter, tensor: Quantized, piece: str, dtype: Any, zero_first: bool) -> None:
    """Shape, look up or scale, and cast `piece`; the last output is named after the tensor."""
    steps: list[tuple[str, tuple[str, ...], tuple[str, ...], dict[str, Any]]] = []
    if tensor.restored.ndim != 1:
        steps.append(("Reshape", (), (emitter.int64(*tensor.restored.shape),), {}))
    last = np.dtype(dtype)
    if last == np.int32:  # codes of several codebooks
        steps.append(("Gather", (_codebook(emitter, tensor, zero_first=zero_first),), (), {}))
        last = np.dtype(np.float32)
    if tensor.scale is not None:
        half = emitter.cast(emitter.constant(tensor.scale.half), np.float32)
        scale = emitter.op("Mul", half, emitter.constant(np.array(tensor.scale.unit)))
        steps.append(("Mul", (), (scale,), {}))
    if last != tensor.restored.dtype:
        steps.append(("Cast", (), (), {"to": helper.np_dtype_to_tensor_dtype(tensor.restored.dtype)}))
    if not steps:
        steps.append(("Identity", (), (), {}))
    for number, (kind, before, after, attributes) in enumerate(steps, start=1):
        output = tensor.name if number == len(steps) else None
        piece = emitter.op(kind, *before, piece, *after, output=output, **attributes)
