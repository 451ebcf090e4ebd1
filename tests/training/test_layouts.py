"""Memory layouts of training: channels last where that is fast and works, the usual one otherwise and afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compress_cli.data import Batch
from compress_cli.training import finetune
from compress_cli.training.numerics import Numerics, is_narrow
from compress_cli.training.recipe import Recipe
from pruners.masks import Masks

CPU = torch.device("cpu")


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))


class Views(nn.Module):
    """Flattens feature maps with `.view`, which needs channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).view(len(x), -1)


def laid_out(network: nn.Module, images: torch.Tensor, teacher: nn.Module | None = None) -> tuple[str, Batch]:
    """The words of the layout, and a batch in it, as if the CPU were a GPU."""
    numerics = Numerics(CPU)
    numerics.device = torch.device("cuda")
    batch = Batch((images,), None, torch.arange(len(images)))
    numerics.prepare_(network, lambda: batch, teacher)
    return numerics.name, numerics.batch(batch)


def test_networks_train_channels_last_where_they_can() -> None:
    network, images = normed().train(), torch.ones(2, 3, 8, 8)
    name, batch = laid_out(network, images)
    assert name == "float32, channels last"
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert batch.inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert network.training
    assert not network[1].running_mean.any()


def test_narrow_networks_train_channels_last_on_a_cpu_and_end_in_the_usual_layout() -> None:
    images = torch.ones(2, 3, 8, 8)
    found = {}
    for width in (16, 400):
        network = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, width, 3))
        numerics = Numerics(CPU)
        numerics.prepare_(network, lambda: Batch((images,), None, torch.zeros(2)))
        found[width] = numerics.name
        numerics.release_(network)
        assert all(weight.is_contiguous() for weight in network.parameters())
    assert found == {16: "float32, channels last", 400: "float32"}
    assert not is_narrow(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(4)))
    assert not is_narrow(nn.Conv2d(3, 4, 3))
    assert not is_narrow(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))


def test_the_layout_does_not_change_what_is_learnt(
    open_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress_cli.demo.net import two_task_cnn

    ends = []
    for narrow in (False, True):
        monkeypatch.setattr("compress_cli.training.numerics.is_narrow", lambda _, chosen=narrow: chosen)
        torch.manual_seed(3)
        network = two_task_cnn()
        with open_run() as (session, quality):
            record = finetune(network, quality, session=session, recipe=Recipe(1, 0.02, batch_size=48))
        assert ("channels last" in record["precision"]) is narrow
        assert all(weight.is_contiguous() for weight in network.parameters())
        ends.append(network.state_dict())
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-3, atol=1e-5)


class ViewedInTraining(nn.Module):
    """A branch that only training has, and that needs the usual layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.drop(self.norm(self.conv(x)))
        return y.view(len(y), -1) if self.training else y.flatten(1)


@pytest.mark.parametrize("fails", [True, False])
def test_a_whole_step_is_tried_in_channels_last_and_leaves_no_trace(fails: bool) -> None:
    network = ViewedInTraining() if fails else normed()
    network.eval()
    numerics, batch = Numerics(CPU), Batch((torch.ones(2, 3, 8, 8),), None, torch.zeros(2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    numerics.prepare_(network, lambda: batch)
    assert numerics.name == "float32, channels last"
    state = torch.get_rng_state()
    numerics.try_(network, lambda: network(*numerics.batch(batch).inputs).square().mean())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())
    assert not network.training
    assert ("channels first (channels last fails: view size" in numerics.name) is fails
    assert all(weight.is_contiguous() for weight in network.parameters()) is fails


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_networks_that_need_channels_first_keep_it(which: str) -> None:
    network, teacher = (Views(), None) if which == "student" else (normed(), Views())
    name, batch = laid_out(network, torch.ones(2, 3, 8, 8), teacher)
    assert name.startswith("float32, channels first (channels last fails: view size")
    assert all(weight.is_contiguous() for weight in network.parameters())
    assert batch.inputs[0].is_contiguous()
    for each in (network, teacher):
        if each is not None:
            each(*batch.inputs)


def test_convolutions_over_volumes_keep_channels_first() -> None:
    network = nn.Sequential(nn.Conv3d(3, 4, 3), nn.Flatten())
    name, batch = laid_out(network, torch.ones(2, 3, 4, 8, 8))
    assert name == "float32, channels first (5-D weights)"
    assert batch.inputs[0].is_contiguous()


def test_masks_are_laid_out_like_what_they_multiply() -> None:
    layer = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        layer.weight[0] = 0.0
    masks = Masks(layer, ["weight"])
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for tensor in (layer.weight, torch.ones(4, 3, 3, 3), torch.ones(4, 3, 3, 3, dtype=torch.float64)):
        mask = masks._for("weight", tensor)
        assert mask.stride() == tensor.stride()
        assert mask is masks._for("weight", tensor)
        assert torch.equal(mask == 0, layer.weight == 0)
