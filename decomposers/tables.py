"""The options of every layer as arrays: form, weights, MACs, errors. What the solvers choose from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from decomposers.folding import Form, factored_weights
from decomposers.layers import Layer, factored_macs
from decomposers.spectra import Floats, Spectrum

Ints = NDArray[np.int64]
Quantity = Literal["params", "macs", "bytes", "ms"]
QUANTITIES: tuple[Quantity, ...] = ("params", "macs", "bytes", "ms")
Timings = Mapping[str, Mapping[Form | None, float]]
"""Measured milliseconds: layer name -> form, or None for the dense layer -> value."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """All options of one layer. Row 0 is the dense layer (rank 0), the others are sorted by scheme, groups, rank.

    Attributes:
        layer: whose options they are.
        forms: (rows, 3) scheme, groups, rank.
        weights: of the whole layer, without bias.
        macs: of all calls in one forward pass of the example inputs.
        score: e_k[j], see `spectra`.
        frobenius: squared Frobenius norm of what is lost, relative to the weight's.
        output: squared error of the layer's output on images, relative to the output's power; None without images.
    """

    layer: Layer
    forms: Ints
    weights: Ints
    macs: Ints
    score: Floats
    frobenius: Floats
    output: Floats | None = None

    def form(self, row: int) -> Form | None:
        """Return the form of a row; None for dense."""
        scheme, groups, rank = (int(value) for value in self.forms[row])
        return Form(scheme, groups, rank) if rank else None

    def row_of(self, form: Form | None) -> int:
        """Return the row of a form.

        Raises:
            KeyError: the form is no option of this layer.
        """
        wanted = (0, 1, 0) if form is None else (form.scheme, form.groups, form.rank)
        rows = np.flatnonzero((self.forms == np.array(wanted)).all(1))
        if not len(rows):
            raise KeyError(f"{self.layer.name} has no option {form}")
        return int(rows[0])

    def select(self, keep: NDArray[np.bool_]) -> Table:
        """Return the table with some rows only; dense stays."""
        rows = keep.copy()
        rows[0] = True
        output = None if self.output is None else self.output[rows]
        parts = (self.forms, self.weights, self.macs, self.score, self.frobenius)
        return Table(self.layer, *(part[rows] for part in parts), output)


def build_table(layer: Layer, found: tuple[Spectrum, ...], max_groups: int | None = None) -> Table:
    """List every form of a layer that has fewer weights than the dense layer and no more MACs.

    A linear layer whose input is not (batch, features) has one slice only: a grouped form would need a reshape that
    only fits two axes.
    """
    flat = bool(layer.shape.kernel) or all(len(call.inputs) == 2 for call in layer.calls)
    limit = max_groups if flat else 1
    parts = [_dense_rows(layer)]
    for spectrum in found:
        if limit is None or spectrum.groups <= limit:
            parts.append(_rows(layer, spectrum))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Table(layer, columns[0], columns[1], columns[2], columns[3], columns[4])


def _dense_rows(layer: Layer) -> tuple[Ints, Ints, Ints, Floats, Floats]:
    zero = np.zeros(1)
    return np.array([[0, 1, 0]]), np.array([layer.shape.weights]), np.array([layer.macs]), zero, zero


def _rows(layer: Layer, spectrum: Spectrum) -> tuple[Ints, Ints, Ints, Floats, Floats]:
    """Return the columns of one (scheme, k): both costs are linear in the rank."""
    unit = Form(spectrum.scheme, spectrum.groups, 1)
    ranks = np.arange(1, len(spectrum.score))
    weights, macs = ranks * factored_weights(layer.shape, unit), ranks * factored_macs(layer, unit)
    smaller = (weights < layer.shape.weights) & (macs <= layer.macs)
    ranks, weights, macs = ranks[smaller], weights[smaller], macs[smaller]
    forms = np.stack([np.full_like(ranks, spectrum.scheme), np.full_like(ranks, spectrum.groups), ranks], 1)
    return forms, weights, macs, spectrum.score[ranks], spectrum.frobenius[ranks]


def costs_of(table: Table, quantity: Quantity, item_size: int = 4, timings: Timings | None = None) -> Floats:
    """Return what each row costs.

    Args:
        table: the layer's options.
        quantity: params, MACs, bytes of the weights, or ms.
        item_size: bytes of one weight.
        timings: needed for ms; rows without a measurement cost infinity.
    """
    if quantity == "ms":
        return _measured(table, timings)
    per_row: dict[str, Callable[[], Ints]] = {
        "params": lambda: table.weights,
        "macs": lambda: table.macs,
        "bytes": lambda: table.weights * item_size,
    }
    return per_row[quantity]().astype(np.float64)


def _measured(table: Table, timings: Timings | None) -> Floats:
    if timings is None:
        raise ValueError("a budget in ms needs measured timings")
    known = timings.get(table.layer.name, {})
    found = [known.get(table.form(row), np.inf) for row in range(len(table.forms))]
    if not np.isfinite(found[0]):
        found[0] = 0.0
        found[1:] = [np.inf] * (len(found) - 1)
    return np.array(found, dtype=np.float64)
