"""ONNX for phones: pooling that CoreML accepts, the `.ort` format, and which nodes mobile accelerators take."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from exporters import files
from exporters.errors import BadOnnxFile, first_line
from exporters.quiet import no_native_stdout, quiet
from exporters.unpacking import unpack

ENGINES = {
    "nnapi": "nnapi_supported_ops.md",
    "coreml mlprogram": "coreml_supported_mlprogram_ops.md",
    "coreml neuralnetwork": "coreml_supported_neuralnetwork_ops.md",
}


@dataclass(frozen=True, slots=True)
class Usability:
    """How much of a model a mobile accelerator would take, by ONNX Runtime's own operator lists.

    Attributes:
        suitability: "yes", "maybe" or "no", as ONNX Runtime's usability checker judges partitions and coverage.
        unsupported: operators it does not know.
        caveats: conditions on operators that the checker names but does not check.
    """

    engine: str
    suitability: str
    nodes: int
    supported: int
    partitions: int
    unsupported: tuple[str, ...]
    caveats: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class OrtFiles:
    """A model in ONNX Runtime's mobile format, and the operators that a reduced runtime build needs for it."""

    ort: Path
    config: Path
    ort_bytes: int
    operators: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "ort": str(self.ort), "config": str(self.config)}


def pooling_for_phones(model: ModelProto) -> int:
    """Rewrite means over both image axes as GlobalAveragePool, which every mobile converter knows; returns how many.

    Only where both are equal: 4-D input, axes 2 and 3, the axes kept with size 1.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.input)
        if value.type.tensor_type.HasField("shape")
    }
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    changed = 0
    for node in model.graph.node:
        if node.op_type == "ReduceMean" and ranks.get(node.input[0]) == 4 and _over_image(node, constants):
            pool = helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], node.name)
            node.CopyFrom(pool)
            changed += 1
    if changed:
        _drop_unused(model.graph)
    return changed


def _over_image(node: NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    flags = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    axes = flags.get("axes")
    if len(node.input) > 1 and node.input[1] in constants:  # an input from opset 18 on
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
    return flags.get("keepdims", 1) == 1 and axes is not None and {axis % 4 for axis in axes} == {2, 3}


def _drop_unused(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for tensor in [t for t in graph.initializer if t.name not in used and int(np.prod(t.dims)) <= 4]:
        graph.initializer.remove(tensor)


def usability(path: Path) -> tuple[Usability, ...]:
    """What each mobile accelerator would make of the model with fixed shapes (batch 1). Give it a plain file.

    Raises:
        BadOnnxFile: the file cannot be read.
    """
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    model = files.read(path)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model)
    found = []
    for engine, table in ENGINES.items():
        if engine == "nnapi":
            info = checker.check_nnapi_partitions(inferred, False)
        else:
            info = checker.check_coreml_partitions(inferred, False, table)
        found.append(
            Usability(
                engine=engine,
                suitability=info.suitability().name.lower() if info.num_nodes else "no",
                nodes=info.num_nodes,
                supported=info.num_supported_nodes,
                partitions=info.num_partitions,
                unsupported=tuple(sorted(info.unsupported_ops)),
                caveats=tuple(caveat.strip() for caveat in info.supported_ops_checker.get_caveats()),
            )
        )
    return tuple(found)


def convert_to_ort(source: Path, target: Path) -> OrtFiles:
    """Write `source` as `.ort` to `target`, and beside it `target` with the ending `.required_operators.config`.

    The conversion evaluates constants: a packed file becomes dense in it (and is unpacked first).

    Raises:
        BadOnnxFile: ONNX Runtime cannot convert it.
    """
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    config = target.with_name(f"{target.stem}.required_operators.config")
    with tempfile.TemporaryDirectory(prefix=".ort-", dir=target.parent) as folder:
        work = Path(folder) / "model.onnx"
        unpack(source, work)
        try:
            with quiet(), no_native_stdout():
                convert_onnx_models_to_ort(work, None, [OptimizationStyle.Fixed], None, "arm")
            os.replace(next(Path(folder).glob("*.config")), config)
            os.replace(next(Path(folder).glob("*.ort")), target)
        except (Exception, StopIteration) as error:  # onnxruntime's exceptions have no common class of their own
            raise BadOnnxFile(source, f"it cannot be converted to .ort: {first_line(error)}") from error
    return OrtFiles(target, config, target.stat().st_size, tuple(_operators(config)))


def _operators(config: Path) -> Iterator[str]:
    """Lines such as `ai.onnx;20;Conv,Relu` as `ai.onnx 20 Conv`."""
    for line in config.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "!")):
            domain, version, names = line.split(";", 2)
            yield from (f"{domain} {version} {name}" for name in names.split(","))
