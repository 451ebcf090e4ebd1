"""Small edits of ONNX protos that several modules of this package share."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Graphs in the attributes of `node` (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and every graph inside it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Nodes of `graph` and of every graph inside it."""
    for part in all_graphs(graph):
        yield from part.node


def value_names(graph: GraphProto) -> set[str]:
    """Every name of a value in `graph` and inside it."""
    names: set[str] = set()
    for part in all_graphs(graph):
        names.update(value.name for value in (*part.input, *part.output, *part.initializer, *part.value_info))
        for node in part.node:
            names.update(node.input)
            names.update(node.output)
    return names


def rename_values(graph: GraphProto, new_names: dict[str, str]) -> None:
    """Rename values of the outer `graph` wherever they are used; inner graphs must not define the same names."""
    for part in all_graphs(graph):
        for value in (*part.input, *part.output, *part.initializer, *part.value_info):
            value.name = new_names.get(value.name, value.name)
        for sparse in part.sparse_initializer:
            sparse.values.name = new_names.get(sparse.values.name, sparse.values.name)
        for node in part.node:
            node.input[:] = [new_names.get(name, name) for name in node.input]
            node.output[:] = [new_names.get(name, name) for name in node.output]


def strip_prefix(graph: GraphProto, prefix: str) -> None:
    """Take `prefix` from the names of initializers where the shorter name is free."""
    taken = value_names(graph)
    new_names: dict[str, str] = {}
    for tensor in graph.initializer:
        short = tensor.name.removeprefix(prefix)
        if short != tensor.name and short not in taken:
            new_names[tensor.name] = short
            taken.add(short)
    rename_values(graph, new_names)


def strip_remarks(model: ModelProto) -> None:
    """Remove doc strings and metadata: they hold stack traces with paths of the machine that exported the model."""
    model.doc_string = ""
    for graph in all_graphs(model.graph):
        graph.doc_string = ""
        graph.ClearField("metadata_props")
        for item in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
            item.doc_string = ""
            item.ClearField("metadata_props")
    for function in model.functions:
        function.doc_string = ""
        function.ClearField("metadata_props")
        for node in function.node:
            node.doc_string = ""
            node.ClearField("metadata_props")
