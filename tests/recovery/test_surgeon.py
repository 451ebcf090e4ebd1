"""Choosing weights by what their removal costs: orders known beforehand, sensitivities, and that it pays."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from compress_cli.recovery import DoNotMatch, RecoveryOptions, recover
from compress_cli.recovery.normal import NormalEquations, ridge_changes
from compress_cli.recovery.sensitivity import sensitivities
from compress_cli.recovery.surgeon import choose_support
from compress_cli.recovery.trace import trace
from pruners import magnitude
from tests.recovery.nets import Residual, images, randomise


def test_with_uncorrelated_inputs_the_smallest_contributions_go() -> None:
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    patches = torch.diag(scales).unsqueeze(0)  # columns without overlap: nothing can be made up for
    weights = torch.tensor([[6.0, 1.0], [2.0, 3.1], [1.0, 1.0], [0.6, 0.5]], dtype=torch.float64).unsqueeze(0)
    sums = NormalEquations.empty(1, 4, 2, patches.device)
    sums.add(patches, torch.zeros(1, 4, 2, dtype=torch.float64))
    everywhere = torch.ones(1, 4, 2, dtype=torch.bool)
    # contributions |w| * scale: [6, 1], [4, 6.2], [3, 3.0], [2.4, 2]
    found = choose_support(sums, weights, everywhere, 3)
    assert found[0].tolist() == [[True, False], [True, True], [True, True], [False, False]]
    found = choose_support(sums, weights, everywhere, 3, torch.tensor([[1.0, 100.0]]))  # the second output counts more
    assert found[0].tolist() == [[True, True], [False, True], [False, True], [False, True]]
    assert choose_support(sums, weights, found, 3).equal(found)  # enough zeros already


def test_correlated_inputs_are_judged_together() -> None:
    g = torch.Generator().manual_seed(0)
    base = torch.randn(300, 3, generator=g).double()
    patches = torch.cat([base, base + 0.1 * torch.randn(300, 3, generator=g)], 1).unsqueeze(0)
    weights = torch.randn(1, 6, 1, generator=g).double()
    sums = NormalEquations.empty(1, 6, 1, patches.device)
    sums.add(patches, torch.zeros(1, 300, 1, dtype=torch.float64))

    def error(support: torch.Tensor) -> float:
        gone = torch.where(support, 0.0, -weights)
        shifted = sums.shifted(gone)
        return float(shifted.errors(ridge_changes(shifted, support, (0.0,))[0]).sum())

    found = error(choose_support(sums, weights, torch.ones(1, 6, 1, dtype=torch.bool), 3))
    every = []
    for kept in itertools.combinations(range(6), 3):
        support = torch.zeros(1, 6, 1, dtype=torch.bool)
        support[0, list(kept)] = True
        every.append(error(support))
    assert found <= sorted(every)[1]  # the best or second best of 20


def test_sensitivity_of_a_linear_net_is_the_square_of_what_follows() -> None:
    net = randomise(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    x = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0))
    found = sensitivities(trace(net, (x,)), [(x,)])
    spread = net(x).std(0, unbiased=False).square().mean()
    expected = net[1].weight.square().sum(0) / spread  # E[(v.W2)_c^2] = |W2[:, c]|^2
    torch.testing.assert_close(found["0.weight"][0].float(), expected.detach(), rtol=0.1, atol=0)
    assert found["0.weight"].shape == (1, 3)


def test_zeros_by_price_are_exact_and_beat_magnitude() -> None:
    dense = randomise(Residual())
    options, x = RecoveryOptions(batch_norms=False), [images(150)]
    by_size, by_price = copy.deepcopy(dense), copy.deepcopy(dense)
    plan = magnitude.plan(magnitude.candidates_in_module(by_size), magnitude.MagnitudeOptions("0.8"))
    magnitude.apply_(by_size, plan)
    plain = recover(dense, by_size, x, options=options)
    zeros = {cut.name: cut.zeros_after for cut in plan.cuts}
    record = recover(dense, by_price, x, options=options, zeros=zeros)
    found = dict(by_price.named_parameters())
    assert {name: int((found[name] == 0).sum()) for name in zeros} == zeros
    assert record.after < plain.after
    assert record.after < record.before
    with pytest.raises(DoNotMatch, match="nowhere"):
        recover(dense, by_price, x, zeros={"nowhere": 3})
