"""What is in an ONNX file: operators, inputs and outputs, initializers by type, and whether its weights are packed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from compress_cli.errors import InputError
from exporters.packing import MARK


@dataclass(frozen=True, slots=True)
class OnnxInspection:
    """An ONNX file taken apart.

    Attributes:
        operators: how many nodes of each kind, subgraphs included, the most common first.
        initializers: by element type: (count, elements, bytes), stored as such or in external files.
        external: files beside this one that hold tensors.
        packed: tier of the packing that `compress` wrote (`packed`, ...); None for dense weights.
    """

    path: str
    bytes: int
    ir_version: int
    opsets: dict[str, int]
    producer: str
    nodes: int
    operators: dict[str, int]
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    initializers: dict[str, dict[str, int]]
    external: tuple[str, ...]
    packed: str | None
    metadata: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {"schema_version": 1, "ok": True, "command": "inspect", "kind": "onnx", **asdict(self)}


def inspect_onnx(path: str | Path) -> OnnxInspection:
    """Read an ONNX file's structure; external data files are named, not read.

    Raises:
        InputError: the file is cut short or damaged.
    """
    file = Path(path)
    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError is not importable under one name across its versions
        raise _damaged(file, str(error) or type(error).__name__) from error
    if not model.graph.node and not model.graph.initializer:
        raise _damaged(file, "its graph is empty")
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    tensors = [tensor for graph in _graphs(model.graph) for tensor in graph.initializer]
    names = {tensor.name for tensor in model.graph.initializer}
    metadata = {_text(entry.key): _text(entry.value) for entry in model.metadata_props}
    return OnnxInspection(
        path=str(file),
        bytes=file.stat().st_size,
        ir_version=model.ir_version,
        opsets={_text(entry.domain) or "ai.onnx": entry.version for entry in model.opset_import},
        producer=f"{_text(model.producer_name)} {_text(model.producer_version)}".strip(),
        nodes=len(nodes),
        operators=_counts([_text(node.op_type) for node in nodes]),
        inputs=tuple(_value(value) for value in model.graph.input if value.name not in names),
        outputs=tuple(_value(value) for value in model.graph.output),
        initializers=_initializers(tensors),
        external=tuple(sorted({_location(tensor) for tensor in tensors} - {""})),
        packed=metadata.get(MARK),
        metadata=metadata,
    )


def _damaged(file: Path, reason: str) -> InputError:
    return InputError(
        f"{file} is an ONNX file that is cut short or damaged: {reason.strip().splitlines()[0][:160]}",
        "copy or download it again, or export it again",
    )


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The graph and those inside its nodes (If, Loop, Scan)."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [graph, *(nested for found in inner for nested in _graphs(found))]


def _counts(kinds: list[str]) -> dict[str, int]:
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Name, dtype and shape; a dimension that is free is its name (or `?`)."""
    kind = value.type.tensor_type
    shape = [size.dim_value if size.HasField("dim_value") else _text(size.dim_param) or "?" for size in kind.shape.dim]
    return {"name": _text(value.name), "dtype": _dtype(kind.elem_type), "shape": shape}


def _dtype(number: int) -> str:
    known = onnx.TensorProto.DataType.values()
    return onnx.TensorProto.DataType.Name(number).lower() if number and number in known else "?"


def _text(value: str | bytes) -> str:
    """A string field; protobuf hands out bytes where a damaged file holds no UTF-8."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


def _initializers(tensors: list[onnx.TensorProto]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        row = found.setdefault(_dtype(tensor.data_type), {"count": 0, "elements": 0, "bytes": 0})
        elements = math.prod(tensor.dims)
        row["count"] += 1
        row["elements"] += elements
        row["bytes"] += _nbytes(tensor, elements)
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _nbytes(tensor: onnx.TensorProto, elements: int) -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    length = next((entry.value for entry in tensor.external_data if entry.key == "length"), None)
    if length is not None and str(length).isdigit():
        return int(length)
    try:
        return elements * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, TypeError):
        return 0


def _location(tensor: onnx.TensorProto) -> str:
    return next((_text(entry.value) for entry in tensor.external_data if entry.key == "location"), "")
