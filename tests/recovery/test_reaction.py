"""Measured reactions: what a copy with those weights shows, the network untouched, and that pooling is seen."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress_cli.recovery.channel_prices import channel_prices
from compress_cli.recovery.outputs import output_error
from compress_cli.recovery.reaction import Reaction
from compress_cli.recovery.trace import trace
from pruners import channels
from tests.recovery.nets import Residual, images, randomise


def reaction(net: nn.Module, x: Tensor) -> Reaction:
    return Reaction(trace(net, (x[:20],)), [(part,) for part in x.split(20)], 1 << 20)


def test_an_error_is_that_of_a_network_with_these_weights_and_nothing_stays() -> None:
    net, x = randomise(Residual()), images(40)
    before = copy.deepcopy(net.state_dict())
    found = reaction(net, x)
    changed = copy.deepcopy(net)
    with torch.no_grad():
        changed.blocks[1].conv2.weight[:, 3] = 0.0
        changed.blocks[1].bn2.running_mean -= 0.25  # 0.25 more at the convolution's output
        changed.head.bias += 0.5
    conv, head = changed.blocks[1].conv2.weight, changed.head.weight
    matrices = {
        "blocks.1.conv2.weight": torch.cat([conv.flatten(1).T, torch.full((1, 8), 0.25)]).unsqueeze(0),
        "head.weight": torch.cat([head.T, torch.full((1, 5), 0.5)]).unsqueeze(0),
    }
    with torch.no_grad():
        wanted = output_error([([net(x)], [changed(x)])])
    assert found.error(matrices) == pytest.approx(wanted, rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert found.error({}) == 0.0
    found.settle(matrices)
    assert found.error(matrices) == pytest.approx(wanted, rel=1e-4)


def test_a_failed_measurement_leaves_the_network_as_it_was() -> None:
    net, x = randomise(Residual()), images(40)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError):
        reaction(net, x).error({"stem.weight": torch.zeros(1, 27, 8), "head.weight": torch.zeros(1, 3, 5)})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_factors_bring_predictions_to_what_is_measured() -> None:
    net, x = randomise(Residual()), images(40)
    found, matrix = reaction(net, x), 0.5 * net.head.weight.detach().T.unsqueeze(0)
    assert found.factor(4.0, {"head.weight": matrix}) * 4.0 == pytest.approx(found.error({"head.weight": matrix}))
    assert found.factor(0.0, {"head.weight": matrix}) is None
    assert found.factor(1.0, {"head.weight": matrix * float("nan")}) is None
    assert found.factor(1.0, {}) is None, "outputs that do not move say nothing about the rest of the group"


class Pooled(nn.Module):
    """One inner width, whose reader is followed by a mean over all 64 positions; no position sees another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.first(x))).mean((2, 3)))


def test_prices_see_that_errors_add_up_where_positions_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squared derivatives count 64 positions as independent: right for noise, 64 times too little for flat images."""
    net, g = randomise(Pooled()), torch.Generator().manual_seed(0)
    noise = torch.randn(200, 3, 8, 8, generator=g)
    groups = channels.analyse(net, (noise[:1],))
    place = next(index for index, group in enumerate(groups.groups) if group.units == 12)

    def factor(x: Tensor) -> float:
        measured = channel_prices(net, [x], groups)[place]
        with monkeypatch.context() as patched:
            patched.setattr(Reaction, "factor", lambda *_: 1.0)
            return float(np.median(measured / channel_prices(net, [x], groups)[place]))

    outputs = 4  # the error is relative to all outputs' spread together, derivatives are taken to one output's
    assert 0.5 < outputs * factor(noise) < 2
    assert 32 < outputs * factor(noise[:, :, :1, :1].expand(200, 3, 8, 8).contiguous()) < 128


class Joined(nn.Module):
    """One layer reads two groups side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.both, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.relu(torch.cat([self.left(x), self.right(x)], 1))
        return self.head(torch.relu(self.both(both)).mean((2, 3)))


def test_a_group_is_priced_with_the_others_whole() -> None:
    """Prices of a group do not depend on whether the other group that its reader reads came first."""
    net, x = randomise(Joined()), images(150)
    swapped = copy.deepcopy(net)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(swapped.left, name).copy_(getattr(net.right, name))
            getattr(swapped.right, name).copy_(getattr(net.left, name))
        swapped.both.weight.copy_(net.both.weight.roll(8, 1))
    found = {}
    for label, model in (("net", net), ("swapped", swapped)):
        groups = channels.analyse(model, (x[:1],))
        names = [group.name.partition(".")[0] for group in groups.groups]
        found[label] = dict(zip(names, channel_prices(model, [x], groups), strict=True))
    np.testing.assert_allclose(found["net"]["left"], found["swapped"]["right"], rtol=0.02)
    np.testing.assert_allclose(found["net"]["right"], found["swapped"]["left"], rtol=0.02)


def test_dead_channels_do_not_make_their_group_worthless() -> None:
    net, x = randomise(Pooled()), images(150)
    with torch.no_grad():
        net.first.bias[:7] = -100.0
    groups = channels.analyse(net, (x[:1],))
    place = next(index for index, group in enumerate(groups.groups) if group.units == 12)
    prices = channel_prices(net, [x], groups)[place]
    assert (prices[7:] > 100 * prices[:7].max()).all()
    assert (prices[7:] > 0).all()
