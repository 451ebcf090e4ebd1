"""Factors and errors measured on a layer's output instead of its weight, from moments over images.

One slice: with U the eigenvectors of W C W' (descending), decoder U_j and encoder U_j' W leave the share
1 - sum_{i<=j} lambda_i / sum lambda_i of the output's power: the best rank j for these inputs, without inverting C.
Several slices: U_g from W_g C_gg W_g', and the error of all slices together, tr(R C R') / tr(W C W') with
R_g = W_g - U_g,j U_g,j' W_g. PCA (Zhang et al., arXiv 1505.06798) is the first with the covariance of the outputs
instead; what the projection takes from their mean goes into the bias.

The joint error of all ranks at once: with the rows e = (u' W_g) of all slices ordered by rank, tr(R C R') is
tr(W C W') - 2 sum diag(U' W C E') + sum of the leading block of (U'U) * (E C E').
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from decomposers.factorize import Factors
from decomposers.folding import Form, LayerShape, fold, rank_limit
from decomposers.moments import Moments
from decomposers.spectra import Floats

DATA_GROUPS = 16
"""Largest number of slices judged by the output's error unless asked otherwise."""


def output_curve(weight: Tensor, shape: LayerShape, groups: int, moments: Moments, centred: bool = False) -> Floats:
    """Return the squared error of the output at ranks 0 .. r, relative to its power (its variance if centred).

    Args:
        weight: as the layer stores it.
        shape: the layer's sizes.
        groups: k slices; above 1 the moments must hold the input patches.
        moments: of this layer.
        centred: judge the deviation from the mean output only.
    """
    rank = rank_limit(shape, 0, groups)
    products = moments.centred if centred else moments.outputs
    power = max(float(products.diagonal(dim1=1, dim2=2).sum()), 1e-300)
    if groups == 1:
        values = torch.linalg.eigvalsh(products).flip(-1).clamp(min=0).sum(0).numpy()
        tails = np.append(np.cumsum(values[::-1])[::-1], 0.0)[: rank + 1]
        tails[-1] = 0.0
        return np.asarray(tails / power, dtype=np.float64)
    matrices, bases = _bases(weight, shape, groups, moments)
    lost = np.zeros(rank + 1)
    for group in range(shape.groups):
        chosen = slice(group * groups, (group + 1) * groups)
        lost += _joint(matrices[chosen], bases[chosen][..., :rank], _inputs(moments)[group])
    lost[-1] = 0.0
    return np.asarray(np.minimum.accumulate(np.clip(lost, 0, None)) / power, dtype=np.float64)


def _inputs(moments: Moments) -> Tensor:
    if moments.inputs is None:
        raise ValueError("several slices need the moments of the input patches")
    return moments.inputs


def _bases(weight: Tensor, shape: LayerShape, groups: int, moments: Moments) -> tuple[Tensor, Tensor]:
    """Return the slices (G k, f/G, w) and the eigenvectors (G k, f/G, f/G) of W_g C_gg W_g', largest first."""
    matrices = fold(weight.detach().double().cpu(), shape, 0, groups)
    width = matrices.shape[2]
    inputs = _inputs(moments)
    blocks = torch.stack(
        [
            inputs[group, start : start + width, start : start + width]
            for group in range(shape.groups)
            for start in range(0, inputs.shape[1], width)
        ]
    )
    vectors = torch.linalg.eigh(matrices @ blocks @ matrices.mT)[1]
    return matrices, vectors.flip(-1)


def _joint(matrices: Tensor, bases: Tensor, inputs: Tensor) -> Floats:
    """Return tr(R C R') at ranks 0 .. r of one layer group: matrices (k, f, w), bases (k, f, r), inputs (k w, k w)."""
    count, _, width = matrices.shape
    rank = bases.shape[2]
    encoders = bases.mT @ matrices  # (k, r, w)
    through = encoders @ inputs.reshape(count, width, -1)  # (k, r, k w): E C
    dense = matrices.transpose(0, 1).flatten(1)  # (f, k w): W
    straight = torch.einsum("gfr,grc,fc->gr", bases, through, dense).sum(0).cumsum(0)  # diag(U' W C E')
    power = ((dense @ inputs) * dense).sum()
    gram = torch.einsum("grhc,hsc->rgsh", through.reshape(count, rank, count, width), encoders)  # E C E', rank first
    overlap = torch.einsum("gfr,hfs->rgsh", bases, bases)  # U'U
    blocks = (gram * overlap).sum((1, 3)).cumsum(0).cumsum(1).diagonal()  # leading blocks
    lost = power - 2 * straight + blocks
    return np.asarray(torch.cat([power.reshape(1), lost]).numpy(), dtype=np.float64)


def output_factors(
    weight: Tensor, shape: LayerShape, form: Form, moments: Moments, centred: bool = False
) -> tuple[Factors, Tensor | None]:
    """Return the factors that keep most of a layer's output, and what PCA adds to the bias (f); None if not centred.

    Args:
        weight: as the layer stores it.
        shape: the layer's sizes.
        form: of scheme 0.
        moments: of this layer.
        centred: PCA.

    Raises:
        ValueError: another scheme, or no patches for several slices.
    """
    if form.scheme != 0:
        raise ValueError("factors from outputs exist for scheme 0 only")
    if form.groups > 1:
        matrices, vectors = _bases(weight, shape, form.groups, moments)
    else:
        matrices = fold(weight.detach().double().cpu(), shape, 0, 1)
        vectors = torch.linalg.eigh(moments.centred if centred else moments.outputs)[1].flip(-1)
    basis = vectors[..., : form.rank]
    factors = Factors((basis.mT @ matrices).contiguous(), basis.contiguous())
    if not centred:
        return factors, None
    mean = moments.mean.unsqueeze(-1)  # (G, f/G, 1)
    return factors, (mean - basis @ (basis.mT @ mean)).flatten()
