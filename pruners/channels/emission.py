"""Tier 4: the forward of a cut model taken from its traced graph, with new sizes, on the user's own parameters.

The model keeps its modules, names and checkpoint keys; only its class becomes a subclass whose forward runs the
rewritten graph: the one traced in eval mode, and in train mode the one traced there, where it could be traced.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from pruners.channels.errors import CannotTrace
from pruners.channels.groups import Groups
from pruners.channels.labels import Ids
from pruners.channels.propagate import Trace, makes_tensors, read_graph
from pruners.channels.rewriting import Rewriter
from pruners.channels.tracing import Entry, Mode, doubled, is_assertion


@dataclass(frozen=True, slots=True)
class Program:
    """One compiled forward.

    Attributes:
        run: (module, *flat inputs) -> flat outputs.
        constants: tensors that the graph needs beyond the module's own, by attribute name.
        sizes: of each flat input, the sizes it was traced with (None: any), empty for what is no tensor. The graph
            holds whatever the code computed from them.
    """

    mode: Mode
    run: Callable[..., Any]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    constants: Mapping[str, Tensor]
    sizes: tuple[tuple[int | None, ...], ...]

    @property
    def dynamic(self) -> bool:
        """Whether it runs on any number of images."""
        return any(size is None for shape in self.sizes for size in shape)

    def check(self, flat: Sequence[Any], name: str) -> None:
        """Refuse inputs of other sizes than the traced ones.

        Raises:
            ValueError: such an input.
        """
        for given, traced in zip(flat, self.sizes, strict=True):
            found = tuple(given.shape) if isinstance(given, Tensor) else ()
            fits = len(found) == len(traced) and all(
                size in (None, own) for own, size in zip(found, traced, strict=True)
            )
            if not fits:
                wanted = " x ".join("any" if size is None else str(size) for size in traced)
                raise ValueError(
                    f"{name} runs a graph traced for inputs of {wanted}, not of {' x '.join(map(str, found))}"
                )


def emit_(model: nn.Module, programs: Sequence[Program]) -> None:
    """Let a module (already cut) run these programs instead of its own forward."""
    by_mode = {program.mode: program for program in programs}
    for program in programs:
        for name, tensor in program.constants.items():
            model.register_buffer(name, tensor.clone(), persistent=False)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        program = by_mode.get("train" if self.training else "eval") or by_mode["eval"]
        flat, spec = pytree.tree_flatten((args, kwargs))
        if spec != program.in_spec:
            raise TypeError(f"{type(self).__name__} runs a traced graph: call it with the arguments it was traced with")
        program.check(flat, type(self).__name__)
        return pytree.tree_unflatten(list(program.run(self, *flat)), program.out_spec)

    kind = type(model)
    model.__class__ = type(f"Pruned{kind.__name__}", (kind,), {"forward": forward, "__module__": kind.__module__})


def programs_of(model: nn.Module, groups: Groups, gone: Ids) -> tuple[list[Program], Rewriter]:
    """Rewrite the graphs of a dense model, for `emit_` on the cut one.

    Raises:
        CannotTrace: the eval graph cannot be rewritten.
    """
    rewriter = Rewriter(groups, gone)
    found = []
    for trace, entry in zip(groups.traces, groups.entries, strict=True):
        program, twins, dynamic = _dynamic_program(model, trace, entry)
        if trace.mode == "train" and _mutations(program):
            continue  # a functional train graph runs, but its backward does not
        found.append(_compile(model, trace, program, twins, rewriter, _sizes(entry, dynamic)))
    return found, rewriter


def _sizes(entry: Entry, dynamic: bool) -> tuple[tuple[int | None, ...], ...]:
    """What each flat input must measure; a dynamic graph leaves those first dims open that were traced so."""
    leaves = pytree.tree_leaves((doubled(entry.args) if dynamic else entry.args, dict(entry.kwargs)))
    shapes = (tuple(leaf.shape) if isinstance(leaf, Tensor) else () for leaf in leaves)
    return tuple((None, *shape[1:]) if dynamic and shape and shape[0] > 1 else shape for shape in shapes)


def graph_hash(groups: Groups) -> str:
    """A hash of the operators of the eval graph, to notice another torch that traces differently."""
    targets = [str(node.target) for node in groups.traces[0].program.graph.nodes if node.op == "call_function"]
    return hashlib.sha256("\n".join(targets).encode()).hexdigest()[:16]


def _mutations(program: ExportedProgram) -> bool:
    return any(spec.kind is OutputKind.BUFFER_MUTATION for spec in program.graph_signature.output_specs)


def _operators(program: ExportedProgram) -> list[fx.Node]:
    """Calls that make tensors, in order: the same for a static and a dynamic trace of one model."""
    return [node for node in program.graph.nodes if node.op == "call_function" and _counts(node)]


def _counts(node: fx.Node) -> bool:
    if node.target is operator.getitem or is_assertion(node):
        return False
    return makes_tensors(node) and not _takes_all(node)


def _takes_all(node: fx.Node) -> bool:
    """`x[:]`, which a static trace leaves out."""
    if str(node.target) != "aten.slice.Tensor" or node.kwargs:
        return False
    bounds = [*node.args[2:], None, None, None][:3]
    return bounds[0] in (None, 0) and isinstance(bounds[1], int) and bounds[1] >= 2**62 and bounds[2] in (None, 1)


_COPYING_VIEW = "aten._unsafe_view.default"
Twins = Mapping[fx.Node, fx.Node]
"""operator of a dynamic trace -> the same one of the static trace"""


def _dynamic_program(model: nn.Module, trace: Trace, entry: Entry) -> tuple[ExportedProgram, Twins, bool]:
    """The entry traced with any batch size if that gives the same operators, else the static trace."""
    static = _operators(trace.program)
    itself = (trace.program, dict(zip(static, static, strict=True)), False)
    if entry.kwargs:
        return itself
    args = doubled(entry.args)
    shapes = pytree.tree_map(
        lambda item: {0: Dim.DYNAMIC} if isinstance(item, Tensor) and item.dim() and item.shape[0] > 1 else None, args
    )
    try:
        program = read_graph(model, Entry(entry.mode, args, {}), (*shapes,))
    except CannotTrace:
        return itself
    twins = _paired(_operators(program), static)
    return itself if twins is None else (program, twins, True)


def _paired(dynamic: Sequence[fx.Node], static: Sequence[fx.Node]) -> Twins | None:
    """Operators of two traces of one model side by side; None where they differ.

    A reshape that is a view of one image copies when there are two: `clone, _unsafe_view` is the twin of `view`.
    """
    found: dict[fx.Node, fx.Node] = {}
    for node in dynamic:
        twin = static[len(found)] if len(found) < len(static) else None
        ours, theirs = str(node.target), str(twin.target) if twin is not None else ""
        feeds = [str(user.target) for user in node.users]
        if (ours, theirs) == ("aten.clone.default", "aten.view.default") and feeds == [_COPYING_VIEW]:
            continue
        if ours != theirs and (ours, theirs) != (_COPYING_VIEW, "aten.view.default"):
            return None
        found[node] = static[len(found)]
    return found if len(found) == len(static) else None


def _compile(
    model: nn.Module,
    trace: Trace,
    program: ExportedProgram,
    twins: Twins,
    rewriter: Rewriter,
    sizes: tuple[tuple[int | None, ...], ...],
) -> Program:
    targets = {
        spec.arg.name: (spec.kind, spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    }
    graph, copied = fx.Graph(), dict[fx.Node, Any]()
    constants: dict[str, Tensor] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in targets:
            kind, target = targets[node.name]
            own = kind is not InputKind.CONSTANT_TENSOR or target in rewriter.names
            name = str(target) if own else f"_{trace.mode}_constant_{len(constants)}"
            if not own:
                constants[name] = program.constants[str(target)]
            copied[node] = graph.get_attr(name)
        elif node.op == "output":
            graph.output(tuple(_user_outputs(program, node, copied)))
        elif node.op == "get_attr" or is_assertion(node):
            if node.op == "get_attr":
                raise CannotTrace(trace.mode, f"the graph holds a sub-graph or constant {node.target}")
        else:
            made = _copied(graph, node, copied, model)
            copied[node] = made
            twin = twins.get(node)
            call = trace.calls.get(twin.name) if twin is not None else None
            if call is not None and twin is not None:
                rewriter.rewrite(made, call, trace.values[twin.name])
                copied[node] = _through_module(graph, made, model)
    _drop_counters(graph)
    graph.eliminate_dead_code(lambda item: item.op == "placeholder" or _is_impure(item))
    return Program(
        trace.mode,
        _function(graph),
        program.call_spec.in_spec,
        program.call_spec.out_spec,
        constants,
        sizes,
    )


def _copied(graph: fx.Graph, node: fx.Node, copied: Mapping[fx.Node, Any], model: nn.Module) -> fx.Node:
    """The same call; where it names a device (`arange`, `new_zeros`), the one that the module is on when it runs."""
    named = any(isinstance(leaf, torch.device) for leaf in pytree.tree_leaves((list(node.args), dict(node.kwargs))))
    first = next((name for name, _ in model.named_parameters()), None)
    if not named or first is None:
        return graph.node_copy(node, lambda item: copied[item])
    device = graph.call_function(_device_of, (graph.get_attr(first),))
    made = graph.node_copy(node, lambda item: copied[item])

    def placed(leaf: Any) -> Any:
        return device if isinstance(leaf, torch.device) else leaf

    made.args = fx.node.map_aggregate(made.args, placed)
    made.kwargs = fx.node.map_aggregate(made.kwargs, placed)
    return made


def _device_of(tensor: Tensor) -> torch.device:
    return tensor.device


_STOCK: dict[str, tuple[type[nn.Module], ...]] = {
    "conv1d": (nn.Conv1d,),
    "conv2d": (nn.Conv2d,),
    "conv3d": (nn.Conv3d,),
    "linear": (nn.Linear,),
    "batch_norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
}


def _through_module(graph: fx.Graph, node: fx.Node, model: nn.Module) -> fx.Node:
    """Let torch's own layers compute what they hold the weights for: hooks see it, batch norms keep their settings."""
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    weight = node.args[1] if len(node.args) > 1 else None
    if name not in _STOCK or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return node
    prefix, _, own = str(weight.target).rpartition(".")
    module = model.get_submodule(prefix)
    if own != "weight" or type(module) not in _STOCK[name] or not _same_settings(node, module, prefix):
        return node
    with graph.inserting_before(node):
        made = graph.call_module(prefix, (node.args[0],))
    node.replace_all_uses_with(made)
    graph.erase_node(node)
    return made


def _same_settings(node: fx.Node, module: nn.Module, prefix: str) -> bool:
    """The call reads this module's tensors with this module's settings."""

    def reads(place: int, name: str) -> bool:
        item = node.args[place] if len(node.args) > place else None
        if getattr(module, name) is None:
            return item is None
        return isinstance(item, fx.Node) and item.op == "get_attr" and item.target == f"{prefix}.{name}"

    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        names = ("weight", "bias", "running_mean", "running_var")
        return all(reads(place + 1, name) for place, name in enumerate(names)) and module.eps == node.args[7]
    if isinstance(module, nn.Linear):
        return reads(2, "bias")
    if not isinstance(module, nn.modules.conv._ConvNd) or module.padding_mode != "zeros" or not reads(2, "bias"):
        return False
    rank = len(module.kernel_size)
    settings = ((3, module.stride, 1), (4, module.padding, 0), (5, module.dilation, 1))
    return "padding" not in str(node.target).partition(".")[2].partition(".")[2] and all(
        tuple(node.args[place]) == tuple(wanted) if len(node.args) > place else tuple(wanted) == (default,) * rank  # type: ignore[arg-type]
        for place, wanted, default in settings
    )


def _drop_counters(graph: fx.Graph) -> None:
    """Batch norms that run as modules count their batches themselves."""
    run = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    for node in list(graph.nodes):
        if node.op == "call_function" and str(node.target) == "aten.add_.Tensor" and not node.users:
            first = node.args[0]
            prefix, _, own = str(first.target if isinstance(first, fx.Node) else "").rpartition(".")
            if own == "num_batches_tracked" and prefix in run:
                graph.erase_node(node)


def _is_impure(node: fx.Node) -> bool:
    if node.op != "call_function":
        return node.op in ("output", "call_module")
    schema = getattr(node.target, "_schema", None)
    key = schema.name if schema is not None else ""
    return bool(schema is not None and schema.is_mutable) or "batch_norm" in key


def _user_outputs(program: ExportedProgram, node: fx.Node, copied: Mapping[fx.Node, Any]) -> list[Any]:
    listed: Any = node.args[0]
    specs = program.graph_signature.output_specs
    kept = [item for item, spec in zip(listed, specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT]
    return [copied[item] if isinstance(item, fx.Node) else item for item in kept]


def _function(graph: fx.Graph) -> Callable[..., Any]:
    """The graph as a Python function of (module, *inputs)."""
    code = graph.python_code("self")
    scope: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<traced graph of the pruned model>", "exec"), scope)
    function: Callable[..., Any] = scope["forward"]
    return function


def example_from(texts: Sequence[str]) -> tuple[Tensor, ...]:
    """Example inputs from recorded `dtype[shape]` texts."""
    made = []
    for text in texts:
        kind, _, shape = text.rstrip("]").partition("[")
        sizes = [int(size) for size in shape.split(",") if size.strip()]
        made.append(torch.zeros(sizes, dtype=getattr(torch, kind)))
    return tuple(made)
