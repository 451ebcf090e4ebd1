"""From a packed ONNX file back to a plain one, and the proof that both hold the same weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from exporters import files
from exporters.folding import evaluate_decoders, replace_decoders
from exporters.packing import MARK
from exporters.slabs import join_layers

Array = NDArray[Any]


def unpack(source: Path, target: Path) -> tuple[str, ...]:
    """Write a packed file as a plain one; returns the names of the weights that were unpacked.

    Each tensor is what the decoder gives, bit for bit; the rest of the graph is untouched. A file without decoders is
    written as it is.

    Raises:
        BadOnnxFile: `source` is no sound ONNX model, or its decoders cannot be evaluated.
    """
    model = files.read(source)
    names = _restore(model, source)
    if not names:
        files.copy(source, target, model)
        return ()
    files.write(model, target)
    files.check(target)
    return names


def _restore(model: ModelProto, source: Path) -> tuple[str, ...]:
    """Put plain tensors and whole layers in place of decoders and slabs; the names of what was decoded."""
    arrays = evaluate_decoders(model, source)
    if arrays:
        replace_decoders(model, arrays)
        join_layers(model)
        for mark in [item for item in model.metadata_props if item.key == MARK]:
            model.metadata_props.remove(mark)
    return tuple(arrays)


def unpacks_to(packed: Path, dense: Path) -> bool:
    """Whether unpacking gives back tensors of `dense` bit for bit (but for the sign of zeros).

    Both files may compute further constants from their tensors (a reshaped table): those are compared by value, since
    packing shortens the names of what nodes give.

    Raises:
        BadOnnxFile: one of the files is no sound ONNX model, or a decoder cannot be evaluated.
    """
    model = files.read(packed)
    stored = {tensor.name for tensor in model.graph.initializer}
    if not _restore(model, packed):
        return False
    original = files.read(dense)
    plain = {tensor.name: tensor for tensor in original.graph.initializer}
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name not in stored}
    wanted = {name: numpy_helper.to_array(plain[name]) for name in found if name in plain}
    if any(_content(found[name]) != _content(array) for name, array in wanted.items()):
        return False
    computed = Counter(map(_content, evaluate_decoders(original, dense).values()))
    return Counter(_content(array) for name, array in found.items() if name not in wanted) <= computed


def _content(array: Array) -> tuple[str, tuple[int, ...], bytes]:
    """Element type, shape and values, the sign of zeros left out."""
    return array.dtype.str, array.shape, (array + 0).tobytes()
