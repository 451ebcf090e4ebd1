"""Images made up from batch norms: their statistics, the network untouched, and that recovery gains from them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compress_cli.recovery import recover
from compress_cli.recovery.synthetic import CannotSynthesise, synthesise
from pruners.batchnorm import reestimate_
from tests.recovery.nets import Residual, images, prune_, randomise


def distance(dense: nn.Module, compressed: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((dense(x) - compressed(x)).square().mean())


@torch.no_grad()
def test_statistics_come_nearer_and_the_network_stays() -> None:
    net = randomise(Residual())
    reestimate_(net, [(images(100),)])
    before = copy.deepcopy(net.state_dict())
    found = {}
    for steps in (0, 30):
        (x,) = synthesise(net, (images(1),), images=48, steps=steps, seed=3)
        assert x.shape == (48, *images(1).shape[1:])
        seen: list[Tensor] = []
        norm = next(part for part in net.modules() if isinstance(part, nn.BatchNorm2d))
        handle = norm.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        net(x)
        handle.remove()
        mean, variance = seen[0].mean((0, 2, 3)), seen[0].var((0, 2, 3), unbiased=False)
        first = ((mean - norm.running_mean).square() / norm.running_var).mean()
        second = ((variance / norm.running_var).sqrt() - 1).square().mean()
        found[steps] = float(first + second)
    assert found[30] < 0.7 * found[0]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    again = synthesise(net, (images(1),), images=48, steps=30, seed=3)[0]
    assert torch.equal(x, again)


def test_recovery_from_made_up_images_helps_on_real_ones() -> None:
    dense = randomise(Residual())
    compressed = copy.deepcopy(dense)
    prune_(compressed, 0.6)
    unseen = images(60, seed=9)
    before = distance(dense, compressed, unseen)
    record = recover(dense, compressed, synthesise(dense, (images(1),), images=100, steps=20))
    assert record.kept
    assert distance(dense, compressed, unseen) < 0.8 * before


def test_networks_without_batch_norms_or_with_other_inputs_are_refused() -> None:
    with pytest.raises(CannotSynthesise, match="has none"):
        synthesise(nn.Conv2d(3, 4, 3), (images(1),))
    with pytest.raises(CannotSynthesise, match="one image"):
        synthesise(randomise(Residual()), (torch.zeros(2, 5),))
