"""Folding: shapes, costs and index order, spelled out by hand on small layers."""

from __future__ import annotations

import pytest
import torch

from decomposers.folding import (
    Form,
    LayerShape,
    distinct_schemes,
    divisors,
    factored_weights,
    fold,
    half_weights,
    matrix_sizes,
    rank_limit,
    unfold,
)

CONV = LayerShape(6, 4, (3, 2))


def test_dense_weights_of_every_kind() -> None:
    assert LayerShape(10, 64).weights == 10 * 64
    assert LayerShape(8, 16, (3,)).weights == 8 * 16 * 3
    assert LayerShape(8, 16, (3, 3), groups=4).weights == 8 * 16 // 4 * 9
    assert LayerShape(8, 16, (2, 2, 2), transposed=True).weights == 8 * 16 * 8


@pytest.mark.parametrize(("scheme", "size"), [(0, (6, 24)), (1, (18, 8)), (2, (12, 12)), (3, (36, 4))])
def test_matrix_sizes_follow_the_table(scheme: int, size: tuple[int, int]) -> None:
    assert matrix_sizes(CONV, scheme, 1) == size
    assert matrix_sizes(CONV, scheme, 2) == (size[0], size[1] // 2)
    assert rank_limit(CONV, scheme, 2) == min(size[0], size[1] // 2)


@pytest.mark.parametrize("scheme", [0, 1, 2, 3])
def test_cost_is_rank_times_k_f_kout_plus_c_kin(scheme: int) -> None:
    out_taps, in_taps = {0: (1, 6), 1: (3, 2), 2: (2, 3), 3: (6, 1)}[scheme]
    assert factored_weights(CONV, Form(scheme, 2, 3)) == 3 * (2 * 6 * out_taps + 4 * in_taps)
    assert half_weights(CONV, Form(scheme, 2, 3)) == (3 * 4 * in_taps, 3 * 2 * 6 * out_taps)


def test_a_grouped_layer_costs_the_same_formula() -> None:
    grouped = LayerShape(8, 8, (3, 3), groups=2)
    assert grouped.weights == 8 * 4 * 9
    assert factored_weights(grouped, Form(0, 2, 1)) == 1 * (2 * 8 + 8 * 9)
    assert rank_limit(grouped, 0, 2) == min(4, 2 * 9)


def test_slices_are_blocks_of_input_channels_then_folded() -> None:
    weight = torch.arange(2 * 4 * 1 * 2).reshape(2, 4, 1, 2)
    shape = LayerShape(2, 4, (1, 2))
    assert fold(weight, shape, 0, 2).tolist() == [
        [[0, 1, 2, 3], [8, 9, 10, 11]],
        [[4, 5, 6, 7], [12, 13, 14, 15]],
    ]
    assert fold(weight, shape, 2, 2).tolist() == [
        [[0, 2], [1, 3], [8, 10], [9, 11]],
        [[4, 6], [5, 7], [12, 14], [13, 15]],
    ]


def test_transposed_weights_are_read_input_first() -> None:
    weight = torch.arange(2 * 3).reshape(2, 3, 1)
    assert fold(weight, LayerShape(3, 2, (1,), transposed=True), 0, 1).tolist() == [[[0, 3], [1, 4], [2, 5]]]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("scheme", [0, 1, 2, 3])
@pytest.mark.parametrize("layer_groups", [1, 2])
def test_unfold_undoes_fold(scheme: int, groups: int, layer_groups: int) -> None:
    shape = LayerShape(6, 8, (3, 2), groups=layer_groups)
    weight = torch.arange(shape.weights).reshape(6, 8 // layer_groups, 3, 2)
    assert torch.equal(unfold(fold(weight, shape, scheme, groups), shape, scheme, groups), weight)


@pytest.mark.parametrize("scheme", [0, 3])
def test_unfold_undoes_fold_for_other_kinds(scheme: int) -> None:
    for shape, size in (
        (LayerShape(6, 4, (2, 3), groups=2, transposed=True), (4, 3, 2, 3)),
        (LayerShape(6, 4, (2, 3, 2)), (6, 4, 2, 3, 2)),
        (LayerShape(6, 4, (3,)), (6, 4, 3)),
        (LayerShape(6, 4), (6, 4)),
    ):
        weight = torch.arange(shape.weights).reshape(size)
        assert torch.equal(unfold(fold(weight, shape, scheme, 2), shape, scheme, 2), weight)


def test_schemes_that_coincide_are_offered_once() -> None:
    assert distinct_schemes(LayerShape(8, 4, (3, 3))) == (0, 1, 2, 3)
    assert distinct_schemes(LayerShape(8, 4, (1, 1))) == (0,)
    assert distinct_schemes(LayerShape(8, 4)) == (0,)
    assert distinct_schemes(LayerShape(8, 4, (3, 1))) == (0, 1)
    assert distinct_schemes(LayerShape(8, 4, (1, 3))) == (0, 2)
    assert distinct_schemes(LayerShape(8, 4, (5,))) == (0, 3)
    assert distinct_schemes(LayerShape(8, 4, (3, 3), transposed=True)) == (0, 3)
    assert distinct_schemes(LayerShape(8, 4, (3, 3)), allowed=(0, 3)) == (0, 3)


def test_divisors_in_order_and_limited() -> None:
    assert divisors(12) == (1, 2, 3, 4, 6, 12)
    assert divisors(12, 4) == (1, 2, 3, 4)
    assert divisors(1) == (1,)


def test_slices_must_divide() -> None:
    with pytest.raises(ValueError, match="3 slices do not divide 4"):
        fold(torch.zeros(6, 4, 3, 2), CONV, 0, 3)
