"""Milliseconds of single layers and of their factored forms in ONNX Runtime, for latency budgets.

Every layer is written as an ONNX graph of one `Conv` (or `Gemm`), its forms as graphs of two, with the layer's own
input size; all graphs of a layer are run in turn, and the least time of each counts: other load only ever adds.
Layers of equal sizes are measured once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from decomposers import alds
from decomposers.factorize import build_pair
from decomposers.folding import Form
from decomposers.layers import Layer
from decomposers.tables import Table

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the dense layer's MACs at which forms are tried."""
MULTIPLE = 8
"""Ranks are multiples of this where they are large enough: kernels work on blocks of channels."""
REPEATS = 15
SECONDS_PER_LAYER = 2.0
LEAST_REPEATS = 7


def measure_forms(
    model: nn.Module, analysis: alds.Analysis, threads: int = 1, seed: int = 0
) -> dict[str, Mapping[Form | None, float]]:
    """Time the dense form and some factored forms of every layer that is a plain Conv2d or Linear.

    Args:
        model: holds the layers; not changed.
        analysis: their options.
        threads: of ONNX Runtime.
        seed: of weights and inputs.

    Returns:
        Layer name -> form, or None for dense -> milliseconds of all its calls; other layers are left out.
    """
    known: dict[tuple[Any, ...], Mapping[Form | None, float]] = {}
    found: dict[str, Mapping[Form | None, float]] = {}
    for table in analysis.tables:
        module = model.get_submodule(table.layer.name)
        if not supported(module):
            continue
        key = _key(module, table.layer)
        if key not in known:
            known[key] = _measure(module, table, threads, seed)
        found[table.layer.name] = known[key]
    return found


def supported(module: Any) -> bool:
    """Whether a layer's forms can be written as plain convolutions or products."""
    if isinstance(module, nn.Linear):
        return True
    plain = isinstance(module, nn.Conv2d) and not isinstance(module.padding, str)
    return plain and module.padding_mode == "zeros"


def _key(module: Any, layer: Layer) -> tuple[Any, ...]:
    arguments = ("stride", "padding", "dilation")
    return (layer.shape, layer.bias, layer.calls, *(getattr(module, name, None) for name in arguments))


def forms_to_try(table: Table) -> list[Form]:
    """Some forms of a layer for every scheme and number of slices, spread over its MACs."""
    forms = table.forms[1:]
    tried: list[Form] = []
    for scheme, groups in sorted({(int(s), int(k)) for s, k, _ in forms}):
        rows = forms[(forms[:, 0] == scheme) & (forms[:, 1] == groups)]
        highest = int(rows[:, 2].max())
        unit = float(table.macs[1:][(forms == rows[-1]).all(1)][0]) / highest
        for share in SHARES:
            rank = int(share * float(table.macs[0]) / unit)
            rank = rank // MULTIPLE * MULTIPLE if rank >= MULTIPLE else rank
            if 1 <= rank <= highest and Form(scheme, groups, rank) not in tried:
                tried.append(Form(scheme, groups, rank))
    return tried


def _measure(module: Any, table: Table, threads: int, seed: int) -> dict[Form | None, float]:
    """Time all forms of one layer in turn."""
    forms: list[Form | None] = [None, *forms_to_try(table)]
    bias, clock = table.layer.bias, _clock(threads)
    times = dict.fromkeys(forms, 0.0)
    for call in dict.fromkeys(table.layer.calls):
        generator = np.random.default_rng(seed)
        feed = {"x": generator.standard_normal(call.inputs).astype(np.float32)}
        runs = {form: _session(halves(module, form, bias), feed["x"].shape, threads, generator) for form in forms}
        best = dict.fromkeys(forms, float("inf"))
        end = time.perf_counter() + SECONDS_PER_LAYER
        for repeat in range(REPEATS + 2):
            for form, run in runs.items():
                begin = clock()
                run.run(None, feed)
                if repeat > 1:
                    best[form] = min(best[form], (clock() - begin) * 1e3)
            if repeat > LEAST_REPEATS and time.perf_counter() > end:
                break
        count = table.layer.calls.count(call)
        for form in forms:
            times[form] += count * best[form]
    return times


def halves(module: Any, form: Form | None, bias: bool) -> list[Any]:
    """The layers of one form, with undefined weights."""
    return [module] if form is None else [part for part in build_pair(module, form, bias) if hasattr(part, "weight")]


def _session(
    layers: Sequence[Any], size: tuple[int, ...], threads: int, generator: np.random.Generator
) -> onnxruntime.InferenceSession:
    model = onnx_chain(layers, size, generator)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def onnx_chain(layers: Sequence[Any], size: tuple[int, ...], generator: np.random.Generator) -> onnx.ModelProto:
    """An ONNX model of convolutions or linear layers one after the other, with random weights."""
    nodes, weights = [], []
    for index, layer in enumerate(layers):
        last = index == len(layers) - 1
        node, tensors = _node(layer, index, "y" if last else f"t{index}", generator)
        nodes += node
        weights += tensors
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "chain", [value("x", TensorProto.FLOAT, size)], [value("y", TensorProto.FLOAT, None)], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model


def _node(
    layer: Any, index: int, output: str, generator: np.random.Generator
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    source = "x" if index == 0 else f"t{index - 1}"
    linear = isinstance(layer, nn.Linear)
    shape = tuple(layer.weight.shape)
    weight = generator.standard_normal(shape[::-1] if linear else shape).astype(np.float32)
    tensors = [numpy_helper.from_array(weight, f"w{index}")]
    names = [source, f"w{index}"]
    if layer.bias is not None:
        tensors.append(numpy_helper.from_array(np.zeros(shape[0], np.float32), f"b{index}"))
    if linear:
        product = output if layer.bias is None else f"p{index}"
        nodes = [helper.make_node("MatMul", names, [product])]
        if layer.bias is not None:
            nodes.append(helper.make_node("Add", [product, f"b{index}"], [output]))
        return nodes, tensors
    if layer.bias is not None:
        names.append(f"b{index}")
    return [helper.make_node("Conv", names, [output], **_attributes(layer))], tensors


def _attributes(layer: Any) -> dict[str, Any]:
    return {
        "kernel_shape": list(layer.kernel_size),
        "strides": list(layer.stride),
        "pads": [*layer.padding, *layer.padding],
        "dilations": list(layer.dilation),
        "group": layer.groups,
    }


def original_ms(path: Path, threads: int) -> tuple[float, float]:
    """Median latency of an ONNX file on this machine, and its least by the layers' own clock, in milliseconds."""
    from profilers.latency import compare
    from profilers.ort import make_inputs, open_session

    (latency,) = compare(None, path, threads=threads, batch=1).latencies
    session, clock = open_session(path, threads), _clock(threads)
    feed = make_inputs(session)
    least = float("inf")
    for _ in range(LEAST_REPEATS):
        begin = clock()
        session.run(None, feed)
        least = min(least, (clock() - begin) * 1e3)
    return float(latency.p50_ms), least


def _clock(threads: int) -> Callable[[], float]:
    """Seconds of this thread's own work where one thread does it all: waiting for a busy machine does not count."""
    return time.thread_time if threads == 1 else time.perf_counter


def slower_than_dense(timings: Mapping[str, Mapping[Form | None, float]]) -> Iterator[tuple[str, Form]]:
    """Yield the (layer, form) that save MACs and take longer than the dense layer."""
    for name, times in timings.items():
        for form, ms in times.items():
            if form is not None and ms > times[None]:
                yield name, form
