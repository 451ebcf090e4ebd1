"""Error curves and the split of zeros over layers: known errors, brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from compress_cli.recovery import DoNotMatch
from compress_cli.recovery.weight_prices import Curve, error_curves, share_zeros, solvable
from tests.recovery.nets import Residual, images, randomise


def test_zeros_are_split_so_that_errors_add_up_to_the_least() -> None:
    steps = {"a": [0.0, 1, 3, 6, 10, 15], "b": [0.0, 2, 4, 6, 8, 10], "c": [0.0, 0.5, 1, 9, 20, 31]}
    curves = [Curve(name, 5, tuple(range(6)), tuple(errors)) for name, errors in steps.items()]
    for total in range(16):
        found = share_zeros(curves, total)
        assert sum(found.values()) == total
        every = (z for z in itertools.product(range(6), repeat=3) if sum(z) == total)
        least = min(sum(steps[n][k] for n, k in zip(steps, z, strict=True)) for z in every)
        assert sum(steps[name][count] for name, count in found.items()) == pytest.approx(least)
    assert share_zeros(curves, 12, floor=1) == {"a": 4, "b": 4, "c": 4}
    assert sum(share_zeros(curves, 15, floor=1).values()) == 12  # the floor leaves no more


def test_zeros_that_are_there_stay_and_steep_places_before_flat_ones_are_bridged() -> None:
    curves = [Curve("a", 10, (4, 6, 8, 10), (0.0, 5.0, 6.0, 7.0)), Curve("b", 10, (0, 10), (0.0, 20.0))]
    assert share_zeros(curves, 2) == {"a": 4, "b": 0}
    assert share_zeros(curves, 10) == {"a": 10, "b": 0}  # 7/6 a weight on the hull, not 5/2


@torch.no_grad()
def test_a_layer_without_weights_misses_the_spread_of_its_output() -> None:
    net = randomise(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)))
    x = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    first, second = error_curves(net, [x], ["0.weight", "1.weight"])
    assert first.zeros[-1] == first.weights == 24
    assert list(first.errors) == sorted(first.errors)
    assert list(first.zeros) == sorted(first.zeros)
    # the constant makes up for the mean, so what is missed is the outputs' spread, each scaled to the mean one
    hidden, out = net[0](x), net(x)
    spread = out.var(0, unbiased=False)
    assert second.errors[-1] == pytest.approx(float(spread.sum() / spread.mean()), rel=0.1)
    felt = net[1].weight.square().sum(0) / spread.mean()
    assert first.errors[-1] == pytest.approx(float((hidden.var(0, unbiased=False) * felt).sum()), rel=0.1)


def test_names_must_be_those_of_layers() -> None:
    net = randomise(Residual())
    known = solvable(net, [images(8)])
    assert "stem.weight" in known or len(known) == 6
    with pytest.raises(DoNotMatch, match="nowhere"):
        error_curves(net, [images(8)], ["nowhere"])
