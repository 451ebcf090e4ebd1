"""Singular values of every folding of a weight, from float64 Gram matrices, reduced to the error at each rank.

For k slices W_1 ... W_k of a folded weight the score of rank j is e_k[j] = max_g sigma_{j+1}(W_g) / sigma_1(W). It is
what the published code minimises; it is no bound of the error (that takes a factor sqrt(k), see `alds`). Singular
values are the roots of the eigenvalues of W_g W_g' or of W_g' W_g, whichever is smaller. Only a few products are
formed: W_g W_g' of a coarse slice is the sum over the finer slices in it, and W_g' W_g of a fine slice is a diagonal
block of the coarser one. Float64 throughout: in float32 the squares lose everything below 1e-3 of sigma_1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decomposers.folding import Form, LayerShape, distinct_schemes, divisors, factored_weights, fold, matrix_sizes

Floats = NDArray[np.float64]

CHUNK = 1 << 22
"""Values that are converted to float64 at a time."""

LARGE_ROWS = 256
"""From this many rows on, the symmetry of A A' is used."""

NUMPY_ROWS = range(128, 1500)
"""Sizes at which NumPy's LAPACK gives eigenvalues on the CPU: a quarter faster than torch's, on AMD at least."""

HUGE_ROWS = 1500
"""Slices whose smaller side is above this are not tried with k > 1: each takes seconds and they seldom win."""


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """What each rank of one (scheme, k) leaves behind.

    Attributes:
        scheme: folding scheme.
        groups: k.
        score: e_k[0 .. r], descending, with e_k[r] = 0.
        frobenius: sum over slices of the squared singular values beyond rank j, over that of all; [0 .. r].
    """

    scheme: int
    groups: int
    score: Floats
    frobenius: Floats


def gram(matrices: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return A A' for a batch of matrices, converting a bounded part at a time.

    Args:
        matrices: (batch, rows, columns), any floating type.
        dtype: of the products and the result.

    Returns:
        (batch, rows, rows).
    """
    batch, rows, columns = matrices.shape
    result = matrices.new_zeros((batch, rows, rows), dtype=dtype)
    width = max(1, min(columns, CHUNK // rows))
    count = max(1, CHUNK // (rows * width))
    for first in range(0, batch, count):
        for start in range(0, columns, width):
            _add_product(result[first : first + count], matrices[first : first + count, :, start : start + width])
    return result


def _add_product(result: Tensor, part: Tensor) -> None:
    """Add A A' to a batch of sums; of large products only the lower blocks, mirrored, are multiplied."""
    values, rows = part.to(result.dtype), part.shape[1]
    step = rows if rows < LARGE_ROWS else min(-(-rows // 4), 512)
    for low in range(0, rows, step):
        for high in range(0, low + 1, step):
            block = values[:, low : low + step] @ values[:, high : high + step].mT
            result[:, low : low + step, high : high + step] += block
            if high < low:
                result[:, high : high + step, low : low + step] += block.mT


def _descending(products: Tensor) -> Floats:
    """Return the singular values behind Gram matrices (batch, n, n), descending: (batch, n)."""
    if products.device.type == "cpu" and products.shape[-1] in NUMPY_ROWS:
        values = np.linalg.eigvalsh(products.numpy())
    else:
        values = torch.linalg.eigvalsh(products).cpu().numpy()
    found: Floats = np.sqrt(np.maximum(values, 0.0))[:, ::-1]
    return found


def _from_finer(products: Tensor, times: int) -> Tensor:
    """Sum W_g W_g' of `times` neighbouring slices: (G k times, n, n) -> (G k, n, n)."""
    return products.reshape(-1, times, *products.shape[1:]).sum(1)


def _from_coarser(products: Tensor, times: int) -> Tensor:
    """Take the diagonal blocks of W_g' W_g: (G k, n, n) -> (G k times, n/times, n/times)."""
    size = products.shape[-1] // times
    tiles = products.reshape(-1, times, size, times, size)
    return torch.stack([tiles[:, i, :, i] for i in range(times)], 1).flatten(0, 1)


def singular_values(
    weight: Tensor, shape: LayerShape, scheme: int, slices: tuple[int, ...]
) -> Iterator[tuple[int, Floats]]:
    """Yield (k, singular values (G k, r) of every slice) for each number of slices asked for, in no fixed order."""
    wide = [k for k in slices if matrix_sizes(shape, scheme, k)[0] <= matrix_sizes(shape, scheme, k)[1]]
    rows: dict[int, Tensor] = {}
    for k in sorted(wide, reverse=True):
        finer = next((other for other in rows if other % k == 0), None)
        rows[k] = gram(fold(weight, shape, scheme, k)) if finer is None else _from_finer(rows[finer], finer // k)
        yield k, _descending(rows[k])
    rows.clear()
    columns: dict[int, Tensor] = {}
    for k in sorted(set(slices) - set(wide)):
        coarser = next((other for other in columns if k % other == 0), None)
        columns[k] = (
            gram(fold(weight, shape, scheme, k).mT)
            if coarser is None
            else _from_coarser(columns[coarser], k // coarser)
        )
        yield k, _descending(columns[k])


def slices_to_try(shape: LayerShape, scheme: int, max_groups: int | None) -> tuple[int, ...]:
    """Return the numbers of slices whose rank-1 form is already smaller than the dense layer, and always 1."""
    found = [1]
    for k in divisors(shape.slice_width, max_groups)[1:]:
        smaller = factored_weights(shape, Form(scheme, k, 1)) < shape.weights
        if smaller and min(matrix_sizes(shape, scheme, k)) <= HUGE_ROWS:
            found.append(k)
    return tuple(found)


def spectra(
    weight: Tensor, shape: LayerShape, schemes: tuple[int, ...] = (0,), max_groups: int | None = None
) -> tuple[Spectrum, ...]:
    """Return the error curves of every scheme and number of slices that can make a layer smaller.

    Args:
        weight: as the layer stores it, on the device where the work is to be done.
        shape: the layer's sizes.
        schemes: those allowed; schemes that coincide for this layer are computed once.
        max_groups: largest k; None for no limit.
    """
    found = []
    for scheme in distinct_schemes(shape, schemes):
        values = dict(singular_values(weight.detach(), shape, scheme, slices_to_try(shape, scheme, max_groups)))
        largest = float(values[1].max())
        energy = float(np.square(values[1]).sum())
        found += [_spectrum(scheme, k, values[k], largest, energy) for k in sorted(values)]
    return tuple(found)


def _spectrum(scheme: int, groups: int, values: Floats, largest: float, energy: float) -> Spectrum:
    worst = np.append(values.max(0), 0.0)
    squares = np.square(values).sum(0)
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return Spectrum(scheme, groups, worst / max(largest, 1e-300), tails / max(energy, 1e-300))


def weight_hash(weight: Tensor, shape: LayerShape, schemes: tuple[int, ...], max_groups: int | None) -> str:
    """Return the key under which a layer's spectra are cached: the weight's bytes and what was asked."""
    digest = hashlib.sha256(repr((shape, tuple(weight.shape), str(weight.dtype), schemes, max_groups)).encode())
    digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


class SpectraCache:
    """Spectra by weight hash, kept in one .npz file that the caller names; None keeps them in memory only.

    A file that cannot be read counts as empty: it holds nothing that cannot be computed again.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._arrays: dict[str, Floats] = {}
        if path is not None and path.is_file():
            try:
                with np.load(path, allow_pickle=False) as stored:
                    self._arrays = {name: stored[name] for name in stored.files}
            except (OSError, ValueError, EOFError, BadZipFile):
                self._arrays = {}

    def get(self, key: str) -> tuple[Spectrum, ...] | None:
        """Return the spectra stored under a key, or None."""
        names = sorted((name for name in self._arrays if name.startswith(f"{key}/")), key=_order)
        return tuple(_unpack(name, self._arrays[name]) for name in names) or None

    def put(self, key: str, found: tuple[Spectrum, ...]) -> None:
        """Keep spectra under a key until `save`."""
        for item in found:
            self._arrays[f"{key}/{item.scheme}/{item.groups}"] = np.stack([item.score, item.frobenius])

    def save(self) -> None:
        """Write the file under a temporary name and rename it; nothing without a path."""
        if self.path is None:
            return
        partial = self.path.with_name(self.path.name + ".part")
        with partial.open("wb") as file:
            np.savez(file, **self._arrays)  # type: ignore[arg-type]
        partial.replace(self.path)


def _order(name: str) -> tuple[int, int]:
    scheme, groups = name.split("/")[1:]
    return int(scheme), int(groups)


def _unpack(name: str, stored: Floats) -> Spectrum:
    scheme, groups = _order(name)
    return Spectrum(scheme, groups, stored[0], stored[1])
