"""What a model costs: parameters, non-zeros, MACs, FLOPs = 2 x MACs and memory traffic, counted from a trace.

The forward pass runs on meta tensors: shapes without data, so that a model of any size costs neither compute nor
memory. Models that mix in tensors of their own run on fake tensors (which know their device); models whose control
flow depends on values (detectors) are run for real, and a note says so. Sparse-effective
MACs = sum over layers of MACs x density of the layer's weight: what a runtime that skips every zero could save, not
what ONNX Runtime does. Memory traffic counts each operator alone: every input and weight read, every output written.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from profilers.errors import CountingFailed, first_line
from profilers.modes import modes_kept
from profilers.op_costs import RULE
from profilers.op_trace import OpTrace, following, unfused_attention


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One operator of one module, summed over its calls.

    Attributes:
        name: the module's name ("" for the model itself).
        op: the operator, such as `aten::convolution`.
        weight: the parameter that it multiplies by; None for products of two activations and for uncounted operators.
        macs: dense multiply-accumulates of the whole batch.
        activations: elements of its outputs.
        bytes_read: inputs and weights; bytes_written: outputs.
    """

    name: str
    op: str
    weight: str | None
    calls: int
    macs: int
    activations: int
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True, slots=True)
class Complexity:
    """Costs of one forward pass of the given batch.

    Attributes:
        params: elements of all parameters, tied ones once; nonzero: those that are not 0 (None for a model on the
            meta device).
        macs: dense; sparse_macs: zeros skipped, rounded down.
        activations: elements of the outputs of the counted operators.
        by_layer: every operator that moves data; `macs` is 0 for those the rule leaves out.
        uncounted: (operator, calls) of operators that are neither counted nor left out by the rule.
        uncalled: modules with parameters of their own that did not run.
        traced: `meta` or `fake` (shapes only), or `real`.
    """

    params: int
    nonzero: int | None
    macs: int
    flops: int
    sparse_macs: int
    activations: int
    bytes_read: int
    bytes_written: int
    by_layer: tuple[LayerCost, ...]
    uncounted: tuple[tuple[str, int], ...]
    uncalled: tuple[str, ...]
    rule: str
    batch: int
    traced: str
    notes: tuple[str, ...] = ()

    def macs_by_weight(self) -> dict[str, int]:
        """Dense MACs of every weight that takes part in a counted operator, by parameter name."""
        found: dict[str, int] = {}
        for layer in self.by_layer:
            if layer.weight is not None:
                found[layer.weight] = found.get(layer.weight, 0) + layer.macs
        return found

    def macs_by_module(self) -> dict[str, int]:
        """Dense MACs by module name, without modules that have none."""
        found: dict[str, int] = {}
        for layer in self.by_layer:
            if layer.macs:
                found[layer.name] = found.get(layer.name, 0) + layer.macs
        return found

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return asdict(self)


def measure(model: nn.Module, example_inputs: tuple[Any, ...]) -> Complexity:
    """Count one forward pass of `model` in eval mode on `example_inputs`; the model is left as it was.

    Args:
        model: any module, on any device; its weights are shared, never copied.
        example_inputs: positional arguments of the forward (tensors, or containers of tensors).

    Raises:
        CountingFailed: the model does not run on these inputs.
    """
    trace, traced, notes = _trace(model, example_inputs)
    layers = tuple(_layer(key, totals) for key, totals in trace.totals.items())
    densities = {name: _density(tensor) for name, tensor in model.named_parameters()}
    macs = sum(layer.macs for layer in layers)
    return Complexity(
        params=sum(tensor.numel() for tensor in model.parameters()),
        nonzero=_nonzero(densities),
        macs=macs,
        flops=2 * macs,
        sparse_macs=sum(_effective(layer, densities) for layer in layers),
        activations=sum(layer.activations for layer in layers),
        bytes_read=sum(layer.bytes_read for layer in layers),
        bytes_written=sum(layer.bytes_written for layer in layers),
        by_layer=layers,
        uncounted=tuple(sorted(trace.uncounted.items())),
        uncalled=tuple(_uncalled(model, trace)),
        rule=RULE,
        batch=_batch(example_inputs),
        traced=traced,
        notes=notes,
    )


def _trace(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[OpTrace, str, tuple[str, ...]]:
    """The first trace that succeeds: (trace, how, notes)."""
    reason = ""
    for how, attempt in (("meta", _run_meta), ("fake", _run_fake)):
        try:
            return attempt(model, inputs), how, ()
        except Exception as error:  # value-dependent code and missing kernels raise many classes; the note says which
            reason = first_line(error)
    if any(tensor.is_meta for tensor in model.parameters()):
        raise CountingFailed(f"the model is on the meta device and cannot be run there: {reason}")
    try:
        with _twin(model, on_meta=False) as twin:
            trace = _run(twin, inputs)
    except Exception as error:
        raise CountingFailed(f"the model does not run on its example inputs: {first_line(error)}") from error
    return trace, "real", (f"counted on real tensors, as these inputs run: shapes alone do not do ({reason})",)


def _run_meta(model: nn.Module, inputs: tuple[Any, ...]) -> OpTrace:
    with _twin(model, on_meta=True) as twin:
        return _run(twin, tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, inputs))


def _run_fake(model: nn.Module, inputs: tuple[Any, ...]) -> OpTrace:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with _twin(model, on_meta=False) as twin, fake:
        return _run(twin, tree_map(lambda leaf: fake.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf, inputs))


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> OpTrace:
    trace = OpTrace(dict(model.named_parameters(remove_duplicate=False)))
    with torch.no_grad(), unfused_attention(), following(trace, model), trace:
        model(*inputs)
    return trace


@contextmanager
def _twin(model: nn.Module, *, on_meta: bool) -> Iterator[nn.Module]:
    """The same modules in eval mode: what a forward leaves behind stays off the caller's.

    On meta every tensor is a shape; else the parameters are the caller's own, and buffers are copied, as a real run may
    write them. Where modules cannot be copied the model itself is lent and its training flags are put back.
    """
    try:
        twin = copy.deepcopy(model, dict(_stand_ins(model, on_meta)))
    except Exception:  # an attribute that cannot be copied: any class
        if on_meta:
            raise
        twin = model
    with modes_kept(model):
        yield twin.eval()


def _stand_ins(model: nn.Module, on_meta: bool) -> Iterator[tuple[int, Tensor]]:
    """What deepcopy takes in place of a tensor: parameters and plain attributes, and on meta the buffers too."""
    for parameter in model.parameters():
        yield id(parameter), nn.Parameter(parameter.detach().to("meta"), False) if on_meta else parameter
    attributes = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    for tensor in [*attributes, *(model.buffers() if on_meta else ())]:
        yield id(tensor), tensor.detach().to("meta") if on_meta else tensor


def _uncalled(model: nn.Module, trace: OpTrace) -> Iterator[str]:
    """Modules that hold parameters, did not run, and whose weights nobody else used."""
    used = {weight for _, _, weight in trace.totals}
    for name, module in model.named_modules():
        own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters(recurse=False)]
        if own and name not in trace.called and not used.intersection(own):
            yield name


def _layer(key: tuple[str, str, str | None], totals: Any) -> LayerCost:
    name, op, weight = key
    return LayerCost(
        name=name,
        op=op,
        weight=weight,
        calls=totals.calls,
        macs=totals.macs,
        activations=totals.outputs,
        bytes_read=totals.bytes_read,
        bytes_written=totals.bytes_written,
    )


def _density(tensor: Tensor) -> tuple[int, int | None]:
    """(elements, elements that are not zero)."""
    return tensor.numel(), None if tensor.is_meta else int(torch.count_nonzero(tensor.detach()))


def _nonzero(densities: dict[str, tuple[int, int | None]]) -> int | None:
    counts = [nonzero for _, nonzero in densities.values()]
    return None if None in counts else sum(count for count in counts if count is not None)


def _effective(layer: LayerCost, densities: dict[str, tuple[int, int | None]]) -> int:
    """Dense MACs times the density of the weight, in whole numbers; dense where there is no weight to skip."""
    elements, nonzero = densities.get(layer.weight or "", (0, None))
    return layer.macs * nonzero // elements if elements and nonzero is not None else layer.macs


def _batch(inputs: tuple[Any, ...]) -> int:
    if inputs and isinstance(inputs[0], list):
        return len(inputs[0])  # detectors take a list of images
    first = next((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)), None)
    return int(first.shape[0]) if first is not None and first.dim() > 0 else 1
