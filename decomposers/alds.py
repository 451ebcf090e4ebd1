"""Layer-wise low-rank decomposition of a whole network under one budget.

Source: Liebenwein, Maalouf, Gal, Feldman, Rus, "Compressing Neural Networks: Towards Determining the Optimal
Layer-wise Decomposition", NeurIPS 2021, arXiv 2107.11442. Every layer may become an encoder of k groups and rank j and
a 1x1 decoder; the pair (k, j) of all layers is chosen at once so that the largest score e_k[j] is least under the
budget. The published search (random restarts) is replaced by the exact one of `solvers`.

`analyse` looks at a model once, `choose` makes a plan for one budget from that, `plan` does both; `apply_` changes a
model in place, `restructure_` changes its structure only (for weights that are loaded afterwards), and `prove` checks
that the pairs compute what dense layers with the reconstructed weights compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import floor
from pathlib import Path

import numpy as np
import torch
from torch import nn

from decomposers.alds_plan import AldsPlan, Factored
from decomposers.errors import InfeasibleBudget, NothingToDecompose
from decomposers.folding import Form, rank_limit
from decomposers.layers import Layer, Skipped, Structure, factored_activations, find_layers, weight_of
from decomposers.moments import Moments, collect_moments, patches_supported
from decomposers.observe import Inputs
from decomposers.options import AldsOptions
from decomposers.output_error import DATA_GROUPS, output_curve
from decomposers.solvers import Choices, Infeasible, Solution, frontier, minimise_max, minimise_sum
from decomposers.spectra import Floats, SpectraCache, spectra, weight_hash
from decomposers.surgery import Pair, Proof, apply_, pairs, prove, restructure_, with_true_errors
from decomposers.tables import QUANTITIES, Quantity, Table, Timings, build_table, costs_of, sliceable

UNITS = {"params": "params", "macs": "MACs", "bytes": "bytes", "ms": "ms"}

__all__ = [
    "AldsOptions",
    "AldsPlan",
    "Analysis",
    "Pair",
    "Proof",
    "analyse",
    "apply_",
    "choose",
    "error_curve",
    "pairs",
    "plan",
    "prove",
    "restructure_",
    "with_true_errors",
]


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """Everything that does not depend on the budget.

    Attributes:
        structure: layers and what was skipped.
        tables: the options of every layer, in the same order.
        options: those the tables were made for.
        item_sizes: bytes of one weight of every layer.
        bytes_total: bytes of all parameters and buffers.
        moments: of every layer by name, where the options measure the error on images; `apply_` needs them.
    """

    structure: Structure
    tables: tuple[Table, ...]
    options: AldsOptions
    item_sizes: tuple[int, ...]
    bytes_total: int
    moments: Mapping[str, Moments] = field(default_factory=dict)


def analyse(
    model: nn.Module,
    example_inputs: Inputs,
    options: AldsOptions | None = None,
    *,
    images: Sequence[Inputs] = (),
    cache: Path | None = None,
    device: torch.device | str | None = None,
) -> Analysis:
    """Find the layers and compute the error of all their forms.

    Args:
        model: not changed.
        example_inputs: a tensor, a sequence of arguments or a mapping of keyword arguments.
        options: see `AldsOptions`.
        images: unlabelled batches, for the errors that are measured on images.
        cache: .npz file in which spectra are kept by weight hash; read if it exists, and written.
        device: where the spectra are computed; by default where the weights are.

    Raises:
        NothingToDecompose: no layer can be replaced.
        NoMatch: a pattern of the options fits no layer.
        BadWeights: a weight is not finite.
        ValueError: the options need images and there are none.
    """
    options = options or AldsOptions()
    structure = find_layers(model, example_inputs, options.ignore, options.only)
    if not structure.layers:
        raise NothingToDecompose(tuple(f"{item.name}: {item.reason}" for item in structure.skipped))
    moments: dict[str, Moments] = {}
    if options.needs_images:
        moments = collect_moments(model, structure.layers, images, options.max_groups)
    store = SpectraCache(cache)
    tables = tuple(
        _table(weight_of(model, layer), layer, options, moments.get(layer.name), store, device)
        for layer in structure.layers
    )
    store.save()
    sizes = tuple(weight_of(model, layer).element_size() for layer in structure.layers)
    tensors = [*model.parameters(), *model.buffers()]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return Analysis(structure, tables, options, sizes, total, moments)


def _table(
    weight: torch.Tensor,
    layer: Layer,
    options: AldsOptions,
    moments: Moments | None,
    store: SpectraCache,
    device: torch.device | str | None,
) -> Table:
    limit = _limit(layer, options)
    key = weight_hash(weight, layer.shape, options.schemes, limit) if store.path else ""
    found = store.get(key) if key else None
    if found is None:
        found = spectra(weight.to(device or weight.device), layer.shape, options.schemes, limit)
        if key:
            store.put(key, found)
    if moments is None:
        return build_table(layer, found, limit)
    centred = options.error == "variance"
    return build_table(
        layer, found, limit, lambda k: output_curve(weight, layer.shape, k, moments, centred), new_bias=centred
    )


def _limit(layer: Layer, options: AldsOptions) -> int | None:
    """Return the largest number of slices tried for a layer; None for no limit."""
    limit = options.limit(linear=not layer.shape.kernel) if sliceable(layer) else 1
    if not options.needs_images:
        return limit
    return min(limit or DATA_GROUPS, DATA_GROUPS) if patches_supported(layer) else 1


def errors_of(table: Table, options: AldsOptions) -> Floats:
    """Return what the options minimise, for each row; for the objective `sum` it is squared."""
    if options.error == "score":
        return np.square(table.score) if options.objective == "sum" else table.score
    if options.error == "rank":
        return _rank_removed(table)
    squared = table.frobenius if options.error == "fro" else table.output
    if squared is None:
        raise ValueError(f"the error {options.error} was not measured: the table was made without images")
    return squared if options.objective == "sum" else np.sqrt(squared)


def _rank_removed(table: Table) -> Floats:
    """Return 1 - j / r for each row; 0 for dense."""
    shape = table.layer.shape
    full = np.array([rank_limit(shape, int(s), int(k)) for s, k, _ in table.forms], dtype=np.float64)
    return np.where(table.forms[:, 2] > 0, 1 - table.forms[:, 2] / full, 0.0)


def error_curve(
    analysis: Analysis, name: str, quantity: Quantity = "params", timings: Timings | None = None
) -> list[tuple[float, float, Form | None]]:
    """Return (cost, error, form) of the options of one layer that are worth taking, cheapest first: a plot's data.

    Raises:
        KeyError: no such layer.
    """
    for table, size in zip(analysis.tables, analysis.item_sizes, strict=True):
        if table.layer.name == name:
            found = frontier(costs_of(table, quantity, size, timings), errors_of(table, analysis.options))
            rows = zip(found.cost, found.error, found.rows, strict=True)
            return [(float(cost), float(error), table.form(int(row))) for cost, error, row in rows]
    raise KeyError(name)


def plan(
    model: nn.Module,
    example_inputs: Inputs,
    options: AldsOptions | None = None,
    *,
    cost: Quantity = "params",
    budget: float,
    total: float | None = None,
    timings: Timings | None = None,
    images: Sequence[Inputs] = (),
    cache: Path | None = None,
) -> AldsPlan:
    """Look at a model and choose a form for every layer; see `analyse` and `choose`.

    A plan whose error is measured on images is applied with the moments of the analysis: use the two steps then.
    """
    analysis = analyse(model, example_inputs, options, images=images, cache=cache)
    chosen = choose(analysis, cost=cost, budget=budget, total=total, timings=timings)
    return with_true_errors(chosen, model, analysis.moments)


def choose(
    analysis: Analysis,
    *,
    cost: Quantity = "params",
    budget: float,
    total: float | None = None,
    timings: Timings | None = None,
) -> AldsPlan:
    """Choose a form for every layer such that the whole model costs at most the budget.

    Args:
        analysis: from `analyse`.
        cost: what the budget counts.
        budget: absolute, for the whole model.
        total: the same quantity of the original model where the caller counts more than this package does (MACs of
            operators that are no layers, latency of the whole model); by default parameters, MACs of convolutions and
            linear layers, bytes of parameters and buffers, or the sum of the dense layers' milliseconds.
        timings: measured milliseconds of the forms to choose from; needed for `ms`.

    Raises:
        InfeasibleBudget: even the smallest forms are over the budget.
        ValueError: an unknown cost.
    """
    if cost not in QUANTITIES:
        raise ValueError(f"cost must be one of {', '.join(QUANTITIES)}, not {cost!r}")
    costs = [costs_of(t, cost, size, timings) for t, size in zip(analysis.tables, analysis.item_sizes, strict=True)]
    dense = float(sum(column[0] for column in costs))
    total = _own_total(analysis, cost, dense) if total is None else total
    choices = [
        frontier(column, errors_of(t, analysis.options)) for t, column in zip(analysis.tables, costs, strict=True)
    ]
    rows = [0] * len(choices)
    if budget < total:
        rows = list(_solve(choices, analysis.options, budget, total - dense, total, UNITS[cost]).rows)
    planned = total - dense + float(sum(column[row] for column, row in zip(costs, rows, strict=True)))
    return _write(analysis, rows, choices, cost, (budget, total, planned))


def _own_total(analysis: Analysis, cost: Quantity, dense: float) -> float:
    counted = {
        "params": analysis.structure.params,
        "macs": analysis.structure.macs,
        "bytes": analysis.bytes_total,
        "ms": dense,
    }
    return float(counted[cost])


def _solve(
    choices: list[Choices], options: AldsOptions, budget: float, fixed: float, total: float, unit: str
) -> Solution:
    """Solve for what is left of the budget after the part of the model that does not shrink."""
    whole = unit != "ms"
    left = (floor(budget) if whole else budget) - fixed
    try:
        if options.objective == "max":
            return minimise_max(choices, left, options.spend)
        return minimise_sum(choices, left, options.spend)
    except Infeasible as error:
        raise InfeasibleBudget(budget, fixed + error.smallest, unit, total) from error


def _write(
    analysis: Analysis,
    rows: list[int],
    choices: list[Choices],
    cost: Quantity,
    amounts: tuple[float, float, float],
) -> AldsPlan:
    """Turn table rows into a plan."""
    budget, total, planned = amounts
    tables, structure = analysis.tables, analysis.structure
    layers, kept = [], []
    saved_weights = saved_macs = 0
    for table, row, options in zip(tables, rows, choices, strict=True):
        if row == 0:
            reason = "the budget leaves it as it is" if len(options.rows) > 1 else "no form of it is smaller"
            kept.append(Skipped(table.layer.name, reason))
            continue
        layers.append(_factored(table, row, analysis.options))
        saved_weights += int(table.weights[0] - table.weights[row])
        saved_macs += int(table.macs[0] - table.macs[row])
    macs = int(total) if cost == "macs" else structure.macs
    return AldsPlan(
        quantity=cost,
        budget=float(budget),
        total=float(total),
        planned=planned,
        params_before=structure.params,
        params_after=structure.params - saved_weights,
        macs_before=macs,
        macs_after=macs - saved_macs,
        layers=tuple(layers),
        kept=tuple(kept),
        skipped=structure.skipped,
        warnings=tuple(_warnings(layers)),
        options={key: list(v) if isinstance(v, tuple) else v for key, v in asdict(analysis.options).items()},
    )


def _factored(table: Table, row: int, options: AldsOptions) -> Factored:
    layer, form = table.layer, table.form(row)
    if form is None:
        raise ValueError(f"{layer.name}: row 0 is the dense layer")
    shape = layer.shape
    size = (shape.in_channels, shape.out_channels) if shape.transposed else (shape.out_channels, shape.in_channels)
    return Factored(
        name=layer.name,
        aliases=layer.aliases,
        tied=layer.tied,
        kind=layer.kind,
        weight_shape=(size[0], size[1] // shape.groups, *shape.kernel),
        bias=layer.bias or options.error == "variance",
        scheme=form.scheme,
        groups=form.groups,
        rank=form.rank,
        score=float(table.score[row]),
        minimised=float(errors_of(table, options)[row]),
        error=float(table.score[row]) if form.groups == 1 and not options.needs_images else None,
        weights_before=int(table.weights[0]),
        weights_after=int(table.weights[row]),
        macs_before=int(table.macs[0]),
        macs_after=int(table.macs[row]),
        activations=factored_activations(layer, form),
    )


def _warnings(layers: list[Factored]) -> list[str]:
    grouped = sum(layer.groups > 1 for layer in layers)
    if not grouped:
        return []
    return [
        f"{grouped} {'layer gets a grouped encoder' if grouped == 1 else 'layers get grouped encoders'}: that saves"
        " size and MACs but often no time; limit the groups to 1 where latency is the goal"
    ]
