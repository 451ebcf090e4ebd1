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
    assert found.factor(0.0, {"head.weight": matrix}) == 1.0
    assert found.factor(1.0, {"head.weight": matrix * float("nan")}) == 1.0


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
