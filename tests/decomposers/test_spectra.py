"""Spectra against torch.linalg.svdvals of the folded slices, and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from decomposers.folding import LayerShape, fold, rank_limit
from decomposers.spectra import (
    HUGE_ROWS,
    SpectraCache,
    gram,
    slices_to_try,
    spectra,
    weight_hash,
)

SHAPES = {
    "conv": LayerShape(12, 16, (3, 3)),
    "tall": LayerShape(40, 8, (3, 1)),
    "pointwise": LayerShape(24, 16, (1, 1)),
    "grouped": LayerShape(12, 16, (3, 3), groups=2),
    "conv1d": LayerShape(10, 12, (5,)),
    "conv3d": LayerShape(6, 8, (2, 3, 2)),
    "transposed": LayerShape(12, 8, (4, 4), transposed=True),
    "linear": LayerShape(20, 12),
}


def weight_for(shape: LayerShape) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    width = shape.slice_width
    size = (shape.in_channels, shape.out_channels // shape.groups) if shape.transposed else (shape.out_channels, width)
    return torch.randn(*size, *shape.kernel, generator=generator)


@pytest.mark.parametrize("name", SHAPES)
def test_scores_and_tails_equal_those_of_the_svd(name: str) -> None:
    shape = SHAPES[name]
    weight = weight_for(shape)
    found = spectra(weight, shape, (0, 1, 2, 3))
    assert {item.groups for item in found} > {1}
    for item in found:
        values = torch.linalg.svdvals(fold(weight.double(), shape, item.scheme, item.groups))  # (G k, r)
        largest = torch.linalg.svdvals(fold(weight.double(), shape, item.scheme, 1)).max()
        limit = rank_limit(shape, item.scheme, item.groups)
        assert len(item.score) == limit + 1
        for rank in range(limit):
            assert item.score[rank] == pytest.approx(float(values[:, rank].max() / largest), rel=1e-9)
            expected = float(values[:, rank:].square().sum() / weight.double().square().sum())
            assert item.frobenius[rank] == pytest.approx(expected, rel=1e-9)
        assert item.score[limit] == item.frobenius[limit] == 0.0


def test_decaying_spectra_keep_their_tail() -> None:
    left = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    right = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
    values = torch.logspace(0, -5, 16, dtype=torch.float64)
    (found,) = spectra(left @ values.diag() @ right, LayerShape(16, 16), (0,), 1)
    assert found.score[:16] == pytest.approx(values.numpy(), rel=1e-5)


def test_gram_of_a_large_matrix_is_exact() -> None:
    matrix = torch.randn(1, 1100, 700, generator=torch.Generator().manual_seed(5))
    product = gram(matrix)
    assert torch.allclose(product[0], matrix[0].double() @ matrix[0].double().T, rtol=1e-12, atol=1e-9)
    assert torch.allclose(product, product.mT, rtol=0, atol=1e-9)


def test_zero_weights_have_a_zero_score() -> None:
    for item in spectra(torch.zeros(8, 8, 3, 3), LayerShape(8, 8, (3, 3))):
        assert np.all(item.score == 0)
        assert np.all(item.frobenius == 0)


def test_slices_that_cannot_win_are_not_tried() -> None:
    assert slices_to_try(LayerShape(10, 64), 0, None) == (1, 2, 4, 8, 16, 32)  # 64 x 10 + 64 is no less than 640
    assert slices_to_try(LayerShape(64, 64, (3, 3)), 0, 8) == (1, 2, 4, 8)
    assert slices_to_try(LayerShape(HUGE_ROWS + 1, 2 * (HUGE_ROWS + 1)), 0, 4) == (1,)


def test_cache_returns_what_was_stored_and_survives_damage(tmp_path: Path) -> None:
    shape = SHAPES["conv"]
    weight = weight_for(shape)
    found, key = spectra(weight, shape), weight_hash(weight, shape, (0,), None)
    file = tmp_path / "spectra.npz"
    cache = SpectraCache(file)
    assert cache.get(key) is None
    cache.put(key, found)
    cache.save()
    again = SpectraCache(file).get(key)
    assert again is not None
    assert [(item.scheme, item.groups) for item in again] == [(item.scheme, item.groups) for item in found]
    for stored, fresh in zip(again, found, strict=True):
        assert np.array_equal(stored.score, fresh.score)
        assert np.array_equal(stored.frobenius, fresh.frobenius)
    file.write_bytes(file.read_bytes()[:100])
    assert SpectraCache(file).get(key) is None


def test_hash_depends_on_weight_and_request() -> None:
    shape = SHAPES["conv"]
    weight = weight_for(shape)
    key = weight_hash(weight, shape, (0,), None)
    changed = weight.clone()
    changed[0, 0, 0, 0] += 1e-6
    assert key == weight_hash(weight.clone(), shape, (0,), None)
    assert len({key, weight_hash(changed, shape, (0,), None), weight_hash(weight, shape, (0,), 4)}) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_spectra_on_the_gpu_agree() -> None:
    shape = SHAPES["conv"]
    weight = weight_for(shape)
    for here, there in zip(spectra(weight, shape), spectra(weight.cuda(), shape), strict=True):
        assert there.score == pytest.approx(here.score, abs=1e-12)
