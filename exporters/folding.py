"""The decoders of a packed file: find them, evaluate them, ask ONNX Runtime whether it does so while loading."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TypeProto, helper, numpy_helper

from exporters import files
from exporters.errors import BadOnnxFile, first_line
from exporters.memory import release
from exporters.proto import all_nodes, subgraphs

Array = NDArray[Any]

DECODER_OPS = {"Add", "Cast", "Concat", "ConstantOfShape", "CumSum", "Gather"}
DECODER_OPS |= {"Identity", "Mul", "Reshape", "ScatterElements", "Slice", "Split", "Sub"}


def decoder_nodes(graph: GraphProto) -> list[NodeProto]:
    """Nodes of decoder operators that depend on constants only, in graph order; none that gives a graph output."""
    outputs = {value.name for value in graph.output}
    inputs = {value.name for value in graph.input}
    constant = {tensor.name for tensor in graph.initializer} - inputs
    found = []
    for node in graph.node:
        known = all(name in constant for name in node.input if name)
        if node.op_type == "Constant":
            constant.update(node.output)
        elif known and node.op_type in DECODER_OPS and not outputs.intersection(node.output):
            found.append(node)
            constant.update(node.output)
    return found


def folded(path: Path) -> bool:
    """Whether ONNX Runtime evaluates all decoders of `path` while it loads the file: none is left in its graph.

    Raises:
        BadOnnxFile: ONNX Runtime cannot load it.
    """
    graph = optimized_graph(path)
    release()
    return not decoder_nodes(graph)


def optimized_graph(path: Path) -> GraphProto:
    """The graph that ONNX Runtime runs on the CPU at its default optimisation, without its large tensors.

    Raises:
        BadOnnxFile: ONNX Runtime cannot load it.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.optimized_model_filepath = str(optimized)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common class of their own
            raise BadOnnxFile(path, f"ONNX Runtime cannot load it: {first_line(error)}") from error
        return onnx.load(optimized, load_external_data=False).graph


def evaluate_decoders(model: ModelProto, path: Path | None = None) -> dict[str, Array]:
    """Tensors that the decoders of `model` give to the rest of the graph, by name.

    Raises:
        BadOnnxFile: ONNX Runtime cannot evaluate them.
    """
    nodes = decoder_nodes(model.graph)
    names = _wanted(model.graph, nodes)
    if not names:
        return {}
    needed = {name for node in nodes for name in node.input}
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in needed}
    loose = {n.output[0]: n for n in model.graph.node if n.op_type == "Constant" and n.output[0] in needed}
    size = sum(map(files.tensor_bytes, constants.values()))
    groups = [names] if size < files.ONE_FILE_BYTES else [[name] for name in names]
    arrays: dict[str, Array] = {}
    for group in groups:
        part, used = _ancestors(nodes, group)
        heads = [loose[name] for name in used if name in loose]
        inputs = [constants[name] for name in used if name in constants]
        results = [helper.make_value_info(name, TypeProto()) for name in group]
        graph = helper.make_graph([*heads, *part], "decoders", [], results, inputs)
        whole = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        try:
            arrays.update(zip(group, _run(whole, group), strict=True))
        except Exception as error:  # onnxruntime's exceptions have no common class of their own
            raise BadOnnxFile(path or "", f"its weights cannot be unpacked: {first_line(error)}") from error
    return arrays


def _ancestors(nodes: list[NodeProto], names: list[str]) -> tuple[list[NodeProto], list[str]]:
    """(those of `nodes` that `names` depend on, in order; every name they use)."""
    wanted = dict.fromkeys(names)
    part = []
    for node in reversed(nodes):
        if any(name in wanted for name in node.output):
            part.append(node)
            wanted.update(dict.fromkeys(node.input))
    return part[::-1], list(wanted)


def _run(model: ModelProto, names: list[str]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(names, {})]


def replace_decoders(model: ModelProto, arrays: Mapping[str, Array]) -> None:
    """Put plain initializers in place of the decoders that gave `arrays`; constants nobody uses any more go too."""
    graph = model.graph
    decoders = decoder_nodes(graph)
    gone = {id(node) for node in decoders}
    rest = [node for node in graph.node if id(node) not in gone]
    copies = []
    for node in rest:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    inner = {name for node in decoders for name in node.input}
    del graph.node[:]
    graph.node.extend(copies)
    used = {name for node in all_nodes(graph) for name in node.input} | {value.name for value in graph.output}
    for tensor in [t for t in graph.initializer if t.name in inner and t.name not in used]:
        graph.initializer.remove(tensor)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())


def _wanted(graph: GraphProto, decoders: list[NodeProto]) -> list[str]:
    """Outputs of decoders that other nodes, or graphs inside nodes, use."""
    inside = {id(node) for node in decoders}
    given = [name for node in decoders for name in node.output]
    used: set[str] = set()
    for node in graph.node:
        if id(node) not in inside:
            used.update(node.input)
        for inner in subgraphs(node):
            used.update(name for part in all_nodes(inner) for name in part.input)
            used.update(value.name for value in inner.output)
    return [name for name in given if name in used]
