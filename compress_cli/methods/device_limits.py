"""Meeting `--max-latency mobile:DEVICE=...`: layers and networks are priced by the device model while planning.

A network's time is the sum of its layers' times up to a factor that depends on the whole network, so every plan is
checked on the ONNX file that it would give.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from math import ceil, floor, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_cli.errors import UsageError
from compress_cli.predicted import device_of, predicted_ms
from compress_cli.translate import channel_errors, export_errors

if TYPE_CHECKING:
    from torch import nn

    from compress_cli.checkpoint import LoadedModel
    from compress_cli.config import RunConfig
    from compress_cli.methods.alds_budgets import Budget
    from compress_cli.quantities import Limit
    from compress_cli.session import Session
    from decomposers import alds
    from decomposers.folding import Form
    from profilers.devices.catalog import Device
    from profilers.devices.features import LayerRow
    from pruners.channels import Budget as ChannelBudget
    from pruners.channels import Fitted

CUTS = 6
CLOSE = 0.05
"""A cut whose predicted time is this much below the limit, relative to it, is near enough."""
TIGHTEN_ROUNDS = 4


def limit_asked(config: RunConfig) -> Limit | None:
    """The latency limit that is predicted, if one was asked for."""
    return next((limit for limit in config.limits() if limit.kind == "ms" and limit.target), None)


def device_asked(config: RunConfig) -> Device | None:
    """Its device.

    Raises:
        UsageError: an unknown one.
    """
    limit = limit_asked(config)
    return None if limit is None else device_of(limit.target, config.threads)


def module_ms(loaded: LoadedModel, module: nn.Module | None, device: Device) -> float:
    """Predicted milliseconds of a network as the ONNX file that it would be exported to.

    Raises:
        UnsupportedModelError: no exporter can write it.
    """
    from compress_cli.shipping import callable_form
    from exporters.onnx_export import export

    assert module is not None  # a limit on a device needs the module
    call = callable_form(loaded, module)
    with tempfile.TemporaryDirectory(prefix="predicted-") as folder, export_errors():
        path = Path(folder) / "model.onnx"
        export(call.module, call.inputs, path, input_names=call.input_names, dynamic_batch=call.dynamic_batch)
        return predicted_ms(path, device)


def solve_for_device(
    session: Session, loaded: LoadedModel, analysis: alds.Analysis, budgets: Sequence[Budget], timings: Any
) -> alds.AldsPlan:
    """`alds_budgets.solve`; a predicted latency is tightened until the network that is planned meets it.

    Raises:
        UsageError: a budget cannot be met.
    """
    from compress_cli.methods.alds_budgets import solve

    plan, device = solve(analysis, budgets, timings), device_asked(session.config)
    if device is None:
        return plan
    limit = next(budget for budget in budgets if budget.quantity == "ms")
    allowed = limit.bound
    for _ in range(TIGHTEN_ROUNDS):
        with session.stage("prediction"):
            found = module_ms(loaded, _planned(loaded.module, plan), device)
        if found <= allowed:
            break
        tighter = dataclasses.replace(limit, bound=limit.bound * 0.995 * allowed / found)
        budgets = tuple(tighter if budget is limit else budget for budget in budgets)
        plan, limit = solve(analysis, budgets, timings), tighter
    return plan


def _planned(module: nn.Module | None, plan: alds.AldsPlan) -> nn.Module:
    """A copy of the network with the planned pairs, weights undefined but finite: enough to export and count."""
    from decomposers.factorize import build_pair

    trial = copy.deepcopy(module)
    assert trial is not None
    for layer in plan.layers:
        pair = build_pair(trial.get_submodule(layer.name), layer.form, layer.bias)
        for parameter in pair.parameters():
            parameter.data.zero_()
        for name in layer.names:
            trial.set_submodule(name, pair)
    return trial


def cut_for_device(
    session: Session, loaded: LoadedModel, cut: Callable[[ChannelBudget], Fitted], budget: ChannelBudget, macs: int
) -> Fitted:
    """The largest network found whose predicted latency is below the limit.

    Args:
        cut: cuts and proves to a budget.
        budget: the other limits.
        macs: of the whole network.

    Raises:
        UsageError: the limit cannot be met, or holds already.
    """
    limit, device = limit_asked(session.config), device_asked(session.config)
    assert limit is not None
    assert device is not None
    full = module_ms(loaded, loaded.module, device)
    allowed = limit.bound(full) or 0.0
    if full <= allowed:
        raise UsageError(f"--max-latency {limit.text} holds already: {full:.3g} ms are predicted", "ask for less")
    fitted: dict[float, Fitted] = {}
    known: dict[tuple[int, int], float] = {}

    def time_of(share: float) -> float:
        most = floor(share * macs) if budget.macs is None else min(budget.macs, floor(share * macs))
        with channel_errors():
            fitted[share] = cut(dataclasses.replace(budget, macs=most))
        made = fitted[share].plan
        key = made.macs_after, made.params_after  # neighbouring budgets often give the same network
        if key not in known:
            known[key] = module_ms(loaded, fitted[share].model, device)
        return known[key]

    share, _ = largest_cut(time_of, allowed, full)
    return fitted[share]


def largest_cut(time_of: Callable[[float], float], limit_ms: float, full_ms: float) -> tuple[float, float]:
    """(share of the MACs to keep, predicted milliseconds) of the largest network found below the limit.

    Args:
        time_of: share of the MACs that may stay -> predicted milliseconds of the network cut to it.
        limit_ms, full_ms: the limit, and the time of the uncut network.

    Raises:
        UsageError: the time does not fall below the limit, with the least that was found.
    """
    low, low_ms, high = 0.0, 0.0, 1.0
    high_ms, least = full_ms, full_ms
    for _ in range(CUTS):
        share = low + (high - low) * min(max((limit_ms * (1 - CLOSE / 2) - low_ms) / (high_ms - low_ms), 0.1), 0.9)
        try:
            ms = time_of(share)
        except UsageError:  # the smallest network that the method can make has more MACs
            low = share
            continue
        least = min(least, ms)
        if ms > limit_ms:
            high, high_ms = share, ms
        else:
            low, low_ms = share, ms
            if ms > (1 - CLOSE) * limit_ms:
                break
    if not low_ms:
        raise UsageError(
            f"--max-latency: the predicted time falls to {least:.3g} ms of {full_ms:.3g} ms, not to {limit_ms:.3g} ms",
            f"allow {ceil(100 * least / full_ms)}%, or --min-channels 1, or cut with another method first",
        )
    return low, low_ms


def forms_ms(module: nn.Module, analysis: alds.Analysis, device: Device) -> dict[str, Mapping[Form | None, float]]:
    """The predicted counterpart of `layer_timings.measure_forms`: layer -> form, None for dense -> milliseconds."""
    from compress_cli.methods.layer_timings import forms_to_try, halves, supported
    from profilers.devices.predict import layers_ms

    found: dict[str, Mapping[Form | None, float]] = {}
    for table in analysis.tables:
        layer = module.get_submodule(table.layer.name)
        if not supported(layer):
            continue
        times: dict[Form | None, float] = {}
        for form in (None, *forms_to_try(table)):
            parts = halves(layer, form, table.layer.bias)
            times[form] = sum(sum(layers_ms(_rows(parts, call.inputs), device)) for call in table.layer.calls)
        found[table.layer.name] = times
    return found


def _rows(layers: Sequence[Any], size: tuple[int, ...]) -> list[LayerRow]:
    """Convolutions and linear layers one after the other, on an input of this size, as the device model reads them."""
    from torch import nn

    from profilers.devices.features import LayerRow

    rows = []
    for layer in layers:
        shape = tuple(layer.weight.shape)
        linear = isinstance(layer, nn.Linear)
        after = (*size[:-1], shape[0]) if linear else (size[0], shape[0], *_images(layer, size[2:]))
        groups = 1 if linear else layer.groups
        rows.append(
            LayerRow(
                type="InnerProduct" if linear else "Convolution" if groups == 1 else "ConvolutionDepthWise",
                macs=prod(after) * prod(shape[1:]),
                weights=prod(shape),
                in_elements=prod(size),
                out_elements=prod(after),
                kernel=0 if linear else shape[-1],
                stride=1 if linear else layer.stride[-1],
                groups=groups,
                in_channels=shape[1] if linear else size[1],
                out_channels=shape[0],
            )
        )
        size = after
    return rows


def _images(layer: Any, sizes: Sequence[int]) -> list[int]:
    """Output height and width of a convolution."""
    spans = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    parts = zip(sizes, layer.padding, spans, layer.stride, strict=True)
    return [(size + 2 * pad - span) // stride + 1 for size, pad, span, stride in parts]
