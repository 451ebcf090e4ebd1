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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from exporters.bitcode import GapIndex, RiceIndex, planes, split_planes
from exporters.ranks import encode_ranks, stored_symbols
from exporters.values import Quantized

Array = NDArray[Any]
ADD_OPSET = 16  # ScatterElements can add from here on


class Emitter:
    """Collects decoder nodes and their constants; equal constants are stored once."""

    def __init__(self, opset: int, prefix: str) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: dict[tuple[bytes, str, tuple[int, ...]], TensorProto] = {}  # by digest, dtype, shape
        self._prefix = prefix
        self._count = 0
        self._tables: dict[int, str] = {}
        self._filled: dict[tuple[tuple[int, ...], Any, str], str] = {}

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
        """A tensor of `shape` with `number` everywhere; emitted once for all that need the same."""
        key = (tuple(shape), number, np.dtype(dtype).str)
        if output is not None or key not in self._filled:
            value = numpy_helper.from_array(np.array([number], dtype))
            name = self.op("ConstantOfShape", self.int64(*shape), output=output, value=value)
            if output is not None:
                return name
            self._filled[key] = name
        return self._filled[key]

    def cut(self, value: str, begin: int, end: int) -> str:
        """`value`[begin:end] along the first axis."""
        return self.op("Slice", value, self.int64(begin), self.int64(end))

    def split(self, value: str, sizes: Sequence[int], names: Sequence[str]) -> list[str]:
        """`value` cut into consecutive pieces of `sizes` along the first axis, each with its name ("": any)."""
        if len(sizes) == 1:
            return [value]
        names = [name or self.name() for name in names]
        self.nodes.append(helper.make_node("Split", [value, self.int64(*sizes)], names))
        return names

    def cumsum(self, value: str, *, exclusive: bool = False) -> str:
        """Running sum of a one-dimensional value, without the element itself where `exclusive`."""
        axis = self.constant(np.array(0, np.int64))
        return self.op("CumSum", value, axis, exclusive=1) if exclusive else self.op("CumSum", value, axis)

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
    """Tensors of one dtype and kind of code that share an index; tensors of one code stand next to each other.

    Attributes:
        index: places of the stored values; None: every element is stored.
        rank_k: Rice parameter of the values' ranks (`ranks`); None: the values are stored at their full width.
    """

    tensors: tuple[Quantized, ...]
    index: RiceIndex | GapIndex | None
    rank_k: int | None = None

    @property
    def size(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.restored.size for tensor in self.tensors)


def emit_block(emitter: Emitter, block: Block) -> None:
    """Append the decoder of `block`; its outputs carry the names of the tensors."""
    values, books = _emit_values(emitter, block)
    dtype = np.dtype(np.int32) if books else _number_type(block)
    flat = _emit_places(emitter, block, values, dtype)
    if dtype == np.int8 and block.tensors[0].scale is not None and len(block.tensors) > 1:
        flat, dtype = emitter.cast(flat, np.float32), np.dtype(np.float32)  # once for all
    looked_up: Sequence[Array | None] = books or [None] * len(block.tensors)
    steps = [_steps(emitter, tensor, dtype, book) for tensor, book in zip(block.tensors, looked_up, strict=True)]
    names = ["" if own else tensor.name for tensor, own in zip(block.tensors, steps, strict=True)]
    pieces = emitter.split(flat, [tensor.restored.size for tensor in block.tensors], names)
    for tensor, own, piece in zip(block.tensors, steps, pieces, strict=True):
        if piece != tensor.name:
            _emit_steps(emitter, own or [_Step("Identity")], piece, tensor.name)


def _number_type(block: Block) -> np.dtype[Any]:
    """What is put to its places: unchanged numbers, int8 before they are scaled (a quarter of the memory), float32."""
    first = block.tensors[0]
    if first.code == "native":
        return first.restored.dtype
    return np.dtype(np.float32 if first.scale is None else np.int8)


def emit_zero(emitter: Emitter, tensor: Quantized) -> None:
    """Append the decoder of a tensor without a non-zero."""
    emitter.filled(tensor.restored.shape, 0, tensor.restored.dtype, output=tensor.name)


def _emit_values(emitter: Emitter, block: Block) -> tuple[str, list[Array]]:
    """(stored values as numbers, nothing) or (int32 codes, the codebook of each tensor)."""
    if block.rank_k is not None:
        return _emit_ranked(emitter, block, block.rank_k)
    several = len(block.tensors) > 1 and block.tensors[0].centres is not None
    parts = []
    for _, run in groupby(block.tensors, key=lambda tensor: tensor.code):
        tensors = tuple(run)
        symbols = stored_symbols(tensors, block.index)
        if tensors[0].centres is not None and isinstance(block.index, GapIndex) and tensors[0].bits in (1, 2, 4):
            parts.append(_emit_by_byte(emitter, tensors[0].centres, symbols, tensors[0].bits))
        elif tensors[0].centres is not None:
            codes = emitter.codes(split_planes(symbols, tensors[0].bits), tensors[0].bits, len(symbols))
            parts.append(codes if several else emitter.op("Gather", emitter.constant(tensors[0].centres), codes))
        else:
            parts.append(_emit_numbers(emitter, tensors[0].code, symbols))
    values = parts[0] if len(parts) == 1 else emitter.op("Concat", *parts, axis=0)
    if not several:
        return values, []
    if block.index is None:
        return values, [tensor.centres for tensor in block.tensors if tensor.centres is not None]
    zero = np.zeros(1, np.float32)  # 0 marks the places without a value
    books = [np.concatenate([zero, tensor.centres]) for tensor in block.tensors if tensor.centres is not None]
    return emitter.op("Add", values, emitter.int32(1)), books


def _emit_by_byte(emitter: Emitter, centres: Array, symbols: Array, bits: int) -> str:
    """Codes of a huge tensor: a table of what each byte stands for, instead of codes as numbers of 32 bits."""
    shifts = np.arange(8 // bits) * bits
    table = centres[(np.arange(256)[:, None] >> shifts) & (2**bits - 1)]  # (256, codes of a byte)
    data = split_planes(symbols, bits)[0]
    numbers = emitter.op("Gather", emitter.constant(table), emitter.cast(emitter.constant(data), np.int32))
    flat = emitter.op("Reshape", numbers, emitter.int64(-1))
    return flat if len(symbols) == len(data) * (8 // bits) else emitter.cut(flat, 0, len(symbols))


def _emit_ranked(emitter: Emitter, block: Block, k: int) -> tuple[str, list[Array]]:
    """The same for Rice-coded ranks: t = ((rank >> k) + 1) 2^k + (rank mod 2^k) is looked up in a padded table.

    Several codebooks keep one element of padding each: 0 marks the places without a value.
    """
    ranked = encode_ranks(block.tensors, block.index, k)
    places = _emit_scaled(emitter, ranked.stream)
    if len(ranked.tables) > 1:
        return (emitter.op("Sub", places, emitter.int32(2**k - 1)) if k else places), list(ranked.tables)
    return emitter.op("Gather", emitter.constant(ranked.tables[0]), places), []


def _emit_numbers(emitter: Emitter, code: str, symbols: Array) -> str:
    if code == "native":
        return emitter.constant(symbols)
    if code == "f16":
        return emitter.cast(emitter.constant(symbols), np.float32)
    bits = int(code[1:])
    if bits == 8:
        return emitter.constant(symbols.astype(np.int8))
    largest = 2 ** (bits - 1) - 1
    codes = emitter.codes(split_planes(symbols + largest, bits), bits, len(symbols))
    return emitter.cast(emitter.op("Sub", codes, emitter.int32(largest)), np.int8)


def _emit_places(emitter: Emitter, block: Block, values: str, dtype: Any) -> str:
    """[N]: the values at their places, zeros elsewhere."""
    index = block.index
    if index is None:
        return values
    if isinstance(index, RiceIndex) and index.k == 0:
        return _emit_by_mask(emitter, index, values, dtype)
    places = _emit_gaps(emitter, index) if isinstance(index, GapIndex) else _emit_rice(emitter, index)
    return emitter.op("ScatterElements", emitter.filled([block.size], 0, dtype), places, values)


def _emit_scale(emitter: Emitter, tensor: Quantized) -> str:
    """The channel scales in float32, in the shape of `Scale.half`."""
    if tensor.scale is None:
        raise ValueError(f"{tensor.name} has no scale")
    half = emitter.cast(emitter.constant(tensor.scale.half), np.float32)
    return emitter.op("Mul", half, emitter.constant(np.array(tensor.scale.unit)))


def _emit_by_mask(emitter: Emitter, index: RiceIndex, values: str, dtype: Any) -> str:
    """Each place looks up its value by its rank among the ones (0 where the mask has none)."""
    bits = emitter.expand(index.unary, 1, index.length)
    rank = emitter.op("Mul", emitter.cumsum(bits), bits)
    if index.length != index.size:
        rank = emitter.cut(rank, 0, index.size)
    zero = emitter.constant(np.zeros(1, dtype))
    return emitter.op("Gather", emitter.op("Concat", zero, values, axis=0), rank)


def _emit_runs(emitter: Emitter, code: RiceIndex) -> str:
    """int32 [n]: q_i + 1, the zeros before the i-th one of the unary stream, counted with the one itself.

    Each zero adds 1 to the count of the one that ends its run: the number of ones before it says which. Where
    ScatterElements cannot add (before opset 16), the ones are numbered, their positions are scattered to their numbers
    (slot 0 takes a 0 from every zero), and q_i + 1 is the distance between neighbours.
    """
    bits = emitter.expand(code.unary, 1, code.length)
    if emitter.opset >= ADD_OPSET:
        run = emitter.cumsum(bits, exclusive=True)
        zeros = emitter.op("Sub", emitter.int32(1), bits)
        counts = emitter.filled([code.count + 1], 1, np.int32)
        return emitter.cut(emitter.op("ScatterElements", counts, run, zeros, reduction="add"), 0, code.count)
    ordinal = emitter.op("Mul", emitter.cumsum(bits), bits)
    place = emitter.op("Mul", emitter.cumsum(emitter.filled([code.length], 1, np.int32)), bits)
    ones = emitter.op("ScatterElements", emitter.filled([code.count + 1], 0, np.int32), ordinal, place)
    return emitter.op("Sub", emitter.cut(ones, 1, code.count + 1), emitter.cut(ones, 0, code.count))


def _emit_scaled(emitter: Emitter, code: RiceIndex) -> str:
    """int32 [n]: (q_i + 1) 2^k + r_i, the coded number plus 2^k."""
    runs = _emit_runs(emitter, code)
    if not code.k:
        return runs
    remainder = emitter.codes(code.remainders, code.k, code.count)
    return emitter.op("Add", emitter.op("Mul", runs, emitter.int32(2**code.k)), remainder)


def _emit_rice(emitter: Emitter, index: RiceIndex) -> str:
    """int32 [n]: p_i = sum_(j<=i) (g_j + 1) - 1 from g_j + 2^k."""
    steps = emitter.op("Add", _emit_scaled(emitter, index), emitter.int32(1 - 2**index.k))
    return emitter.op("Sub", emitter.cumsum(steps), emitter.int32(1))


def _emit_gaps(emitter: Emitter, index: GapIndex) -> str:
    """int32 [entries]: running sum of the distances."""
    return emitter.cumsum(emitter.cast(emitter.constant(index.entries), np.int32))


@dataclass(frozen=True, slots=True)
class _Step:
    """One operator on a tensor's piece, with the inputs before and after it."""

    kind: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


def _steps(emitter: Emitter, tensor: Quantized, dtype: Any, book: Array | None) -> list[_Step]:
    """What makes a tensor of its flat piece: shape, look up or scale, and cast; nothing where the piece is it."""
    steps: list[_Step] = []
    if tensor.restored.ndim != 1:
        steps.append(_Step("Reshape", after=(emitter.int64(*tensor.restored.shape),)))
    last = np.dtype(dtype)
    if book is not None:
        steps.append(_Step("Gather", before=(emitter.constant(book),)))
        last = np.dtype(np.float32)
    if tensor.scale is not None:
        if last != np.float32:
            steps.append(_Step("Cast", attributes={"to": helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))}))
            last = np.dtype(np.float32)
        steps.append(_Step("Mul", after=(_emit_scale(emitter, tensor),)))
    if last != tensor.restored.dtype:
        to = helper.np_dtype_to_tensor_dtype(tensor.restored.dtype)
        steps.append(_Step("Cast", attributes={"to": to}))
    return steps


def _emit_steps(emitter: Emitter, steps: list[_Step], piece: str, name: str) -> None:
    """Append the steps; the last output is called `name`."""
    for number, step in enumerate(steps, start=1):
        output = name if number == len(steps) else None
        piece = emitter.op(step.kind, *step.before, piece, *step.after, output=output, **step.attributes)
