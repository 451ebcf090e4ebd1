"""Small ONNX files: weights become compact byte tensors that standard operators unpack while the model is loaded.

A weight tensor W is replaced by a decoder sub-graph whose last output is called W (`decoder`). Runtimes evaluate it
once, by constant folding: the running model is the dense one. Lossless for `packed`; the other tiers change values
first (`values`) and then store exactly those. `unpacking` is the way back.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from exporters import files
from exporters.bitcode import GapIndex
from exporters.decoder import Block, Emitter, emit_block, emit_zero
from exporters.errors import BadOnnxFile
from exporters.folding import evaluate_decoders, folded
from exporters.layout import (
    GAP8_ELEMENTS,
    Layout,
    bound_bytes,
    payload_bytes,
    plan_layout,
    stored_count,
    treatment_of_zeros,
)
from exporters.memory import release
from exporters.proto import value_names
from exporters.shorten import shorten
from exporters.slabs import Slab, split_layers
from exporters.values import VALUE_CODES, Quantized, code_bits, effective_code, positive_zero, quantize
from exporters.weights import Left, Weight, constants_to_initializers, negative_zeros, weights

Array = NDArray[Any]

__all__ = ["TIERS", "PackResult", "PackedTensor", "folded", "pack", "tier_code"]

LEAST_OPSET = 13
LARGE = 500_000_000  # bytes of packed weights from which on a note tells what loading takes
LOAD_MEMORY_OF_LAYERS = 4.7  # ONNX Runtime 1.32, ViT-B/16 and ResNet-50 (benchmarks/packing_memory.py)
LOAD_MEMORY = 4.3  # peak of ONNX Runtime 1.32 over the size of a 411 MB layer in one piece (dense: 2.0)
MARK = "compress.weights"  # metadata key that names the tier of a packed file
TIERS = ("packed", *(f"packed-{code}" for code in ("fp16", *VALUE_CODES[2:])))


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """One tensor of a packed file; bytes without the decoder's nodes.

    Attributes:
        index: "rice k", "mask", "gap8", "none" (every element is stored) or "zero" (nothing is).
        values: the value code, "native" for unchanged numbers.
        block: tensors with the same number share a decoder; their bytes are split by their stored values.
        bound_bytes: order-0 entropy of mask and values, and the codebook or scale.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nonzero: int
    index: str
    values: str
    block: int
    dense_bytes: int
    bytes: int
    bound_bytes: float


@dataclass(frozen=True, slots=True)
class PackResult:
    """What was packed and what the file weighs.

    Attributes:
        files: the written file, and its weights file when the result still exceeds 2 GB.
        left: tensors of at least 256 bytes that are stored as before, and why.
        bytes_before: of the source, its weights files included.
        bound_bytes: entropy of the packed tensors and plain bytes of all others; the graph itself is not in it.
        graph_bytes: of the network's own nodes and names in the written file, without tensors and decoders.
        folded: whether ONNX Runtime's optimised graph has no decoder left; None: not checked.
        negative_zeros: zeros with a minus sign that became +0.
    """

    tier: str
    files: tuple[Path, ...]
    tensors: tuple[PackedTensor, ...]
    left: tuple[Left, ...]
    bytes_before: int
    bytes_after: int
    bound_bytes: int
    folded: bool | None
    graph_bytes: int = 0
    negative_zeros: int = 0
    notes: tuple[str, ...] = ()

    @property
    def smaller(self) -> bool:
        """Whether packing paid."""
        return self.bytes_after < self.bytes_before

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        document = dataclasses.asdict(self)
        document["files"] = [path.name for path in self.files]
        return {**document, "smaller": self.smaller}


def tier_code(tier: str) -> str:
    """The value code of a tier: "packed-fp16" gives "f16", "packed-cb4" gives "cb4", "packed" gives "f32".

    Raises:
        ValueError: an unknown tier.
    """
    if tier not in TIERS:
        raise ValueError(f"unknown tier {tier!r}; one of {', '.join(TIERS)}")
    code = tier.removeprefix("packed").removeprefix("-")
    return {"": "f32", "fp16": "f16"}.get(code, code)


def pack(
    source: Path,
    target: Path,
    *,
    tier: str = "packed",
    codes: Mapping[str, str] | None = None,
    importance: Mapping[str, Array] | None = None,
    check: bool = True,
) -> PackResult:
    """Write `source` to `target` with packed weights.

    Nothing is packed where it would not pay; where nothing at all pays, `target` is a copy of `source`.

    Args:
        source: any ONNX file.
        target: the file to write; not `source`. A result above 2 GB also writes `target`.data, which it names.
        tier: one of `TIERS`: exact values, fp16, `q2`..`q8` (uniform per channel) or `cb2`..`cb8` (codebook).
            Lossy tiers change only weights of convolutions and products, and store their biases as fp16.
        codes: value code of single tensors by name, in place of the tier's.
        importance: how much each element's squared error matters, by tensor name (for codebooks).
        check: run the ONNX checker, rebuild every tensor and compare bit for bit, ask ONNX Runtime whether it folds.

    Raises:
        BadOnnxFile: `source` is no sound ONNX model, or (a bug) the written file does not give the weights back.
        ValueError: an unknown tier or code.
    """
    result, changed = _packed(source, target, tier, _Wishes(tier_code(tier), codes or {}, importance or {}), check)
    if not check:
        return result
    if changed:
        files.check(target)
    release()  # loading the file takes several times its dense size: what packing held must be gone
    return dataclasses.replace(result, folded=folded(target))


def _packed(source: Path, target: Path, tier: str, wishes: _Wishes, check: bool) -> tuple[PackResult, bool]:
    """(what was written, whether anything was packed); nothing of the model is left in memory."""
    model = files.read(source)
    before = files.weight_bytes(model), _file_bytes(source, model)
    notes = _prepare(model)
    slabs: dict[str, Slab] = {}
    if files.opset(model) >= LEAST_OPSET:
        slabs = split_layers(model, GAP8_ELEMENTS, wishes.pays_in_slabs)
        wishes = wishes.with_slabs(slabs)
    found, left = weights(model) if files.opset(model) >= LEAST_OPSET else ([], [])
    sizes = {w.name: w.array.nbytes for w in found}
    minus = {w.name: negative_zeros(w.array) for w in found}
    stored, reasons = _quantized(found, wishes, slabs)
    layout = plan_layout(stored.values(), slabs)
    dense = {name: reasons.get(name, "packing would not make it smaller") for name in layout.dense}
    left += [Left(name, size, dense[name]) for name, size in sizes.items() if name in dense]
    tensors = _described(layout)
    notes += [
        f"{t.name}: unpacking its {t.dense_bytes / 1e6:,.0f} MB takes about {LOAD_MEMORY} times as much memory while a "
        "runtime loads the file"
        for t in tensors
        if t.index == "gap8" and t.name not in slabs
    ]
    whole = sum(t.dense_bytes for t in tensors)
    if whole >= LARGE:
        notes.append(
            f"while a runtime loads the file it unpacks {whole / 1e6:,.0f} MB of weights, for which ONNX Runtime takes "
            f"about {LOAD_MEMORY_OF_LAYERS} times as much memory (dense: 1.4 to 2.7): "
            "--weights dense where that is too much"
        )
    changed = bool(tensors)
    graph_bytes = 0
    if changed:
        graph_bytes = _rewrite(model, layout, tier)
        written = files.write(model, target)
    else:
        written = files.copy(source, target, files.read(source))
        notes.append("no tensor gets smaller by packing: the file is an unchanged copy")
    result = PackResult(
        tier=tier,
        files=written,
        tensors=tensors,
        left=tuple(left),
        bytes_before=before[1],
        bytes_after=sum(path.stat().st_size for path in written),
        bound_bytes=round(before[0] - sum(t.dense_bytes for t in tensors) + sum(t.bound_bytes for t in tensors)),
        folded=None,
        graph_bytes=graph_bytes,
        negative_zeros=sum(count for name, count in minus.items() if name not in dense),
        notes=tuple(notes),
    )
    if check and changed:
        _compare(layout, target)
    return result, changed


@dataclass(frozen=True, slots=True)
class _Wishes:
    """Value code and importance for each tensor."""

    code: str
    codes: Mapping[str, str]
    importance: Mapping[str, Array]

    def pays_in_slabs(self, name: str, array: Array) -> bool:
        """Whether the decoder of a huge weight will be written: a lossy code, or zeros enough."""
        return self.codes.get(name, self.code) != "f32" or int(np.count_nonzero(array)) < 0.8 * array.size

    def with_slabs(self, slabs: Mapping[str, Slab]) -> _Wishes:
        """The same wishes for parts of weights."""
        codes = {name: self.codes[slab.weight] for name, slab in slabs.items() if slab.weight in self.codes}
        matters = {
            name: self.importance[slab.weight][slab.part]
            for name, slab in slabs.items()
            if slab.weight in self.importance
        }
        return _Wishes(self.code, {**self.codes, **codes}, {**self.importance, **matters})

    def code_of(self, weight: Weight) -> str:
        usual = self.code if weight.product else "f16" if weight.bias and self.code != "f32" else "f32"
        code = self.codes.get(weight.name, usual)
        if code not in VALUE_CODES:
            raise ValueError(f"unknown value code {code!r} for {weight.name}; one of {', '.join(VALUE_CODES)}")
        return code


def _prepare(model: ModelProto) -> list[str]:
    """Make constants visible as initializers; say what stands in the way."""
    version = files.opset(model)
    if version < LEAST_OPSET:
        return [f"opset {version} has no operators to unpack weights with (from {LEAST_OPSET} on)"]
    constants_to_initializers(model.graph)
    if model.ir_version < 4:  # initializers had to be inputs then, which keeps runtimes from folding
        names = {tensor.name for tensor in model.graph.initializer}
        for value in [value for value in model.graph.input if value.name in names]:
            model.graph.input.remove(value)
        model.ir_version = 7
    return []


def _file_bytes(path: Path, model: ModelProto) -> int:
    """Size of the file and, where it keeps weights elsewhere, of those."""
    size = Path(path).stat().st_size
    inside = files.weight_bytes(model)
    return size if size >= inside else size + inside


def _quantized(
    found: list[Weight], wishes: _Wishes, lean: Container[str]
) -> tuple[dict[str, Quantized], dict[str, str]]:
    """(tensors as they will be stored, reasons why some do not get the code that was asked); empties `found`."""
    stored: dict[str, Quantized] = {}
    reasons: dict[str, str] = {}
    found.reverse()
    while found:  # at no time two arrays of every weight
        weight = found.pop()
        wanted = wishes.code_of(weight)
        if weight.name in lean and re.fullmatch(r"q\d", wanted):
            wanted = f"cb{wanted[1]}"  # a codebook as wide: scaling would take one more tensor of the layer's size
        code, reason = effective_code(weight.array, wanted)
        if reason:
            reasons[weight.name] = reason
        matters = wishes.importance.get(weight.name)
        stored[weight.name] = _quantize(weight, code, matters, lean=weight.name in lean)
    return stored, reasons


def _quantize(weight: Weight, code: str, importance: Array | None, *, lean: bool) -> Quantized:
    array = positive_zero(weight.array)
    nonzero, size = int(np.count_nonzero(array)), array.size
    if not nonzero:
        return Quantized(weight.name, "native", array, array.reshape(-1), np.zeros(size, np.bool_))
    masked, reserve = treatment_of_zeros(nonzero, size, code_bits(code, array.dtype), lean=lean)
    return quantize(
        weight.name, array, code, weight.channel_axis, masked=masked, reserve_zero=reserve, importance=importance
    )


def _rewrite(model: ModelProto, layout: Layout, tier: str) -> int:
    """Put decoders in place of the layout's tensors; returns the bytes of everything but tensors and decoders."""
    graph = model.graph
    packed = {tensor.name for block in layout.blocks for tensor in block.tensors} | {t.name for t in layout.zeros}
    emitter = Emitter(files.opset(model), _free_prefix(value_names(graph)))
    for zero in layout.zeros:
        emit_zero(emitter, zero)
    for block in layout.blocks:
        emit_block(emitter, block)
    kept = [tensor for tensor in graph.initializer if tensor.name not in packed]
    names = {tensor.name for tensor in graph.initializer}
    nodes = [*emitter.nodes, *graph.node]
    del graph.initializer[:]
    del graph.node[:]
    graph.initializer.extend([*kept, *emitter.constants.values()])
    graph.node.extend(nodes)
    shorten(model, keep=names)
    mark = model.metadata_props.add()
    mark.key, mark.value = MARK, tier
    ours = sum(node.ByteSize() for node in graph.node[: len(emitter.nodes)])
    return int(model.ByteSize() - ours - sum(tensor.ByteSize() for tensor in graph.initializer))


def _free_prefix(taken: set[str]) -> str:
    prefix = "_p"
    while any(re.match(re.escape(prefix) + r"\d", name) for name in taken):
        prefix += "_"
    return prefix


def _described(layout: Layout) -> tuple[PackedTensor, ...]:
    rows = []
    for number, block in enumerate(layout.blocks):
        stored = [stored_count(tensor, block) * tensor.bits for tensor in block.tensors]
        payload = payload_bytes(block)
        for tensor, count in zip(block.tensors, stored, strict=True):
            share = round(payload * count / max(sum(stored), 1))
            rows.append(_row(tensor, _index_name(block), number, share))
    rows += [_row(tensor, "zero", -1, 0) for tensor in layout.zeros]
    return tuple(rows)


def _row(tensor: Quantized, index: str, block: int, size: int) -> PackedTensor:
    return PackedTensor(
        name=tensor.name,
        shape=tuple(tensor.restored.shape),
        dtype=str(tensor.restored.dtype),
        nonzero=int(np.count_nonzero(tensor.restored)),
        index=index,
        values=tensor.code,
        block=block,
        dense_bytes=tensor.restored.nbytes,
        bytes=size,
        bound_bytes=round(bound_bytes(tensor), 1) if index != "zero" else 0.0,
    )


def _index_name(block: Block) -> str:
    if block.index is None:
        return "none"
    if isinstance(block.index, GapIndex):
        return "gap8"
    return f"rice {block.index.k}" if block.index.k else "mask"


def _compare(layout: Layout, target: Path) -> None:
    """Every tensor that the written decoders give, against what was meant to be stored, bit for bit."""
    got = evaluate_decoders(files.read(target), target)
    meant = {t.name: t.restored for block in layout.blocks for t in block.tensors}
    meant.update({tensor.name: tensor.restored for tensor in layout.zeros})
    for name, array in meant.items():
        if name not in got or got[name].dtype != array.dtype or got[name].shape != array.shape:
            raise BadOnnxFile(target, f"the decoder of {name} does not give it back")
        if got[name].tobytes() != array.tobytes():
            raise BadOnnxFile(target, f"the decoder of {name} gives other numbers")
