"""The penalty on encoders: by hand, zero after a decomposition, and smaller after training with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compress_cli.training import finetune
from compress_cli.training.orthogonal import Encoders, factored_layers, rows_of
from compress_cli.training.recipe import Recipe
from decomposers import alds
from decomposers.options import AldsOptions


def decomposed(network: nn.Module) -> tuple[nn.Module, alds.AldsPlan]:
    half = 0.5 * sum(weight.numel() for weight in network.parameters())
    plan = alds.plan(network, (torch.randn(1, 1, 8, 8),), AldsOptions(), budget=half)
    alds.apply_(network, plan)
    return network, plan


def pair(encoder: nn.Module) -> nn.Module:
    return nn.ModuleDict({"layer": nn.Sequential(encoder, nn.Conv2d(4, 8, 1))})


def test_rows_and_penalty_by_hand() -> None:
    encoder = nn.Conv2d(2, 4, 1, groups=2, bias=False)  # two slices of two rows of one number each: cosines are 1 or -1
    assert rows_of(encoder).shape == (2, 2, 1)
    assert Encoders(pair(encoder), ["layer"]).penalty().item() == pytest.approx(1.0)
    encoder = nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[3.0, 0, 0], [4, 3, 0]]).view(2, 3, 1, 1))
    assert Encoders(pair(encoder), ["layer"]).penalty().item() == pytest.approx(0.8**2)
    transposed = nn.ConvTranspose2d(3, 2, (1, 2), bias=False)
    assert torch.equal(rows_of(transposed)[0, 1], transposed.weight[:, 1].flatten())
    assert len(Encoders(pair(nn.Conv2d(3, 1, 1, bias=False)), ["layer"])) == 0  # one row has no angle to another


def test_encoders_are_orthogonal_after_a_decomposition_and_found_by_the_plan(network: nn.Module) -> None:
    model, plan = decomposed(network)
    names = factored_layers([{"method": "magnitude", "layers": [{"name": "x"}]}, plan.to_dict()])
    assert names == tuple(layer.name for layer in plan.layers)
    encoders = Encoders(model, names)
    assert len(encoders) > 0
    assert encoders.penalty().item() < 1e-10


def test_training_with_the_penalty_keeps_rows_apart(open_run: Callable[..., Any], network: nn.Module) -> None:
    model, plan = decomposed(network)
    names = factored_layers([plan.to_dict()])
    left = {}
    for weight in (0.0, 10.0):
        tuned = copy.deepcopy(model)
        with open_run() as (session, quality):
            recipe = Recipe(epochs=3, lr=0.1, batch_size=32, orthogonal=weight)
            record = finetune(tuned, quality, session=session, recipe=recipe, factored=names)
        left[weight] = Encoders(tuned, names).penalty().item()
        assert record["orthogonal"] == weight
    assert left[10.0] < 0.2 * left[0.0]


def test_without_decomposed_layers_the_wish_is_answered(open_run: Callable[..., Any], network: nn.Module) -> None:
    with open_run() as (session, quality):
        finetune(network, quality, session=session, recipe=Recipe(epochs=1, lr=0.01, batch_size=96, orthogonal=1.0))
        assert any("no layer is decomposed" in line for line in session.warnings)
