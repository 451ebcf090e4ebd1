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
        weights: of the whole layer, without bias, but with one that the decoder gets where the layer has none.
        macs: of all calls in one forward pass of the example inputs.
        score: e_k[j], see `spectra`.
        frobenius: squared Frobenius norm of what is lost, relative to the weight's.
        output: squared error of the layer's output on images, relative to its power or variance; None without images.
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
        columns = (self.forms[rows], self.weights[rows], self.macs[rows], self.score[rows], self.frobenius[rows])
        return Table(self.layer, *columns, output)


OutputCurve = Callable[[int], Floats]
"""Number of slices -> squared error of the output at ranks 0 .. r, for scheme 0."""


def sliceable(layer: Layer) -> bool:
    """Whether a form with k > 1 exists: linear layers need inputs of (batch, c) for it."""
    return bool(layer.shape.kernel) or all(len(call.inputs) == 2 for call in layer.calls)


def build_table(
    layer: Layer,
    found: tuple[Spectrum, ...],
    max_groups: int | None = None,
    output: OutputCurve | None = None,
    new_bias: bool = False,
) -> Table:
    """List every form of a layer that has fewer weights than the dense layer and no more MACs.

    A linear layer whose input is not (batch, features) has one slice only: a grouped form would need a reshape that
    only fits two axes.

    Args:
        layer: whose forms they are.
        found: its spectra.
        max_groups: largest number of slices.
        output: errors of the output, where they were measured; all spectra must be of scheme 0 then.
        new_bias: the decoder gets a bias that the layer does not have; it counts as weights.
    """
    limit = max_groups if sliceable(layer) else 1
    extra = layer.shape.out_channels if new_bias and not layer.bias else 0
    parts = [_dense_rows(layer)]
    for spectrum in found:
        if limit is None or spectrum.groups <= limit:
            parts.append(_rows(layer, spectrum, extra, output))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    errors = columns[5] if output is not None else None
    return Table(layer, columns[0], columns[1], columns[2], columns[3], columns[4], errors)


def _dense_rows(layer: Layer) -> tuple[Ints, Ints, Ints, Floats, Floats, Floats]:
    zero = np.zeros(1)
    return np.array([[0, 1, 0]]), np.array([layer.shape.weights]), np.array([layer.macs]), zero, zero, zero


def _rows(
    layer: Layer, spectrum: Spectrum, extra: int, output: OutputCurve | None
) -> tuple[Ints, Ints, Ints, Floats, Floats, Floats]:
    """Return the columns of one (scheme, k): both costs are linear in the rank."""
    unit = Form(spectrum.scheme, spectrum.groups, 1)
    ranks = np.arange(1, len(spectrum.score))
    weights, macs = ranks * factored_weights(layer.shape, unit) + extra, ranks * factored_macs(layer, unit)
    smaller = (weights < layer.shape.weights) & (macs <= layer.macs)
    ranks, weights, macs = ranks[smaller], weights[smaller], macs[smaller]
    forms = np.stack([np.full_like(ranks, spectrum.scheme), np.full_like(ranks, spectrum.groups), ranks], 1)
    errors = spectrum.frobenius if output is None else output(spectrum.groups)
    return forms, weights, macs, spectrum.score[ranks], spectrum.frobenius[ranks], errors[ranks]


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
