"""ST-3 and AC/DC: formulas by hand, gradients straight through, exact zeros in the end, resume in any phase."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from compress_cli.training import finetune
from compress_cli.training.modes import choose_sparsifier, default_ramp
from compress_cli.training.phases import Phases, phase_bounds
from compress_cli.training.recipe import Recipe
from compress_cli.training.soft import SoftThreshold, soft_threshold
from compress_cli.training.sparse import Dense, Frozen, Gradual
from compress_cli.training.trainer import Trainer
from pruners import magnitude
from pruners.masks import Masks
from pruners.schedules import OneShot

RECIPE = Recipe(epochs=2, lr=0.05, batch_size=32)


def planned(network: nn.Module, sparsity: str = "0.9") -> magnitude.MagnitudePlan:
    return magnitude.plan(magnitude.candidates_in_module(network), magnitude.MagnitudeOptions(sparsity))


def zeros(network: nn.Module, plan: magnitude.MagnitudePlan) -> int:
    return sum(int((weight == 0).sum()) for name, weight in network.named_parameters() if name in plan.names)


def test_soft_threshold_by_hand() -> None:
    weight = torch.tensor([[3.0, 1.0], [-4.0, 2.0], [0.5, -1.0]])
    found = soft_threshold(weight, 1.0)
    # row 0: kept {3}, rho = 1.5/2; row 1: both kept, rho = 1 and beta = 1; row 2: nothing kept
    beta = 1.01 / ((1.5 + 1e-6) / (2 + 1e-6) + 0.01)
    torch.testing.assert_close(found, torch.tensor([[2 * beta, 0], [-3, 1], [0, 0]]))
    columns = soft_threshold(weight.t().contiguous(), 1.0, channel_axis=1)
    torch.testing.assert_close(columns, found.t())
    assert not torch.signbit(found[found == 0]).any()


def test_st3_passes_the_gradient_of_q_straight_to_v(network: nn.Module) -> None:
    plan = planned(network)
    raw = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    st3 = SoftThreshold(network, plan, OneShot(0.9))
    images = torch.randn(8, 1, 8, 8)
    st3.before_forward_(0)
    deployed = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    network(images)["digit"].square().mean().backward()
    st3.after_backward_()
    assert zeros(network, plan) == 0
    assert all(torch.equal(weight, raw[name]) for name, weight in network.named_parameters())

    twin = copy.deepcopy(network)  # an independent network that holds q as its weights
    twin.zero_grad()
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            weight.copy_(deployed[name])
    twin(images)["digit"].square().mean().backward()
    for (name, weight), (_, other) in zip(network.named_parameters(), twin.named_parameters(), strict=True):
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, other.grad)
            if name == "conv2.weight":
                masked = deployed[name] == 0
                assert masked.any()
                assert torch.count_nonzero(weight.grad[masked]) > 0


def test_st3_ends_with_exactly_the_zeros_asked_where_magnitudes_are_equal(network: nn.Module) -> None:
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.where(weight < 0, -0.25, 0.25))
    plan = planned(network, "0.5")
    st3 = SoftThreshold(network, plan, OneShot(0.5))
    st3.finish_()
    ranked = sum(weight.numel() for name, weight in network.named_parameters() if name in plan.names)
    assert zeros(network, plan) == plan.zeros_after == ranked // 2


@pytest.mark.parametrize("mode", ["gradual", "st3", "acdc"])
def test_each_mode_learns_and_ends_with_exactly_the_zeros_asked(
    open_run: Callable[..., Any], network: nn.Module, mode: str
) -> None:
    plan = planned(network)
    with open_run(epochs=2, schedule=mode, task="x") as (session, quality):
        masks = Masks(network, plan.names)
        record = finetune(network, quality, session=session, constraint=masks, plan=plan)
    assert zeros(network, plan) == plan.zeros_asked
    losses = [row["loss"] for row in record["history"]]
    assert losses == sorted(losses, reverse=True)
    assert record["sparsity"]["mode"] == {"gradual": "gradual", "st3": "ST-3", "acdc": "AC/DC"}[mode]


@pytest.mark.parametrize("mode", ["gradual", "st3", "acdc"])
@pytest.mark.parametrize("ema", [None, 0.8])
def test_each_mode_resumes_bit_for_bit(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch, mode: str, ema: float | None
) -> None:
    plan = planned(network)
    recipe = Recipe(epochs=2, lr=0.05, batch_size=48, ema=ema)
    straight, broken, again = (copy.deepcopy(network) for _ in range(3))

    def train(model: nn.Module, **how: Any) -> None:
        with open_run(schedule=mode, **how) as (session, quality):
            masks = Masks(model, plan.names)
            finetune(model, quality, session=session, recipe=recipe, constraint=masks, plan=plan)

    train(straight)
    original = Trainer._step

    def dies(self: Trainer, batches: Any) -> None:
        if self.progress.step == 5:
            raise MemoryError  # at a step after the state of epoch 1 was saved
        original(self, batches)

    monkeypatch.setattr(Trainer, "_step", dies)
    with pytest.raises(MemoryError):
        train(broken)
    monkeypatch.setattr(Trainer, "_step", original)
    train(again, resume=True)
    theirs = straight.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in again.state_dict().items())
    assert zeros(again, plan) == plan.zeros_asked


def test_acdc_phases_alternate_and_end_sparse() -> None:
    bounds = phase_bounds(100)
    assert bounds[:3] == [(0, False), (10, True), (15, False)]
    assert bounds[-3:] == [(70, True), (75, False), (85, True)]
    assert all(a[1] is not b[1] for a, b in pairwise(bounds))
    for steps in range(1, 30):
        few = phase_bounds(steps)
        assert few[-1][1] is True
        assert few[-1][0] < steps
        assert [a[0] < b[0] and a[1] is not b[1] for a, b in pairwise(few)] == [True] * (len(few) - 1)


def test_acdc_holds_zeros_in_sparse_phases_and_frees_them_in_dense_ones(
    open_run: Callable[..., Any], network: nn.Module
) -> None:
    plan = planned(network)
    with open_run() as (session, quality):
        phases = Phases(network, plan, 40)
        recipe = Recipe(epochs=1, lr=0.05, batch_size=4)
        trainer = Trainer(network, quality, recipe, session, sparsifier=phases, teacher=None)
        seen = []
        original = phases.after_step_

        def watched(optimizer: torch.optim.Optimizer, step: int) -> None:
            original(optimizer, step)
            seen.append(zeros(network, plan))

        phases.after_step_ = watched  # type: ignore[method-assign]
        trainer.steps = 40
        trainer.run()
    sparse = [begin for begin, kind in phase_bounds(40) if kind]
    assert all(seen[begin] == plan.zeros_asked for begin in sparse)
    assert all(seen[begin] < plan.zeros_asked // 2 for begin, kind in phase_bounds(40) if not kind)


def test_modes_are_chosen_by_what_there_is(network: nn.Module) -> None:
    plan = planned(network)
    masks = Masks(network, plan.names)
    assert type(choose_sparsifier(network, None, None, "st3", 100)) is Dense
    assert type(choose_sparsifier(network, masks, plan, "one-shot", 100)) is Frozen
    assert type(choose_sparsifier(network, masks, plan, "gradual", 100)) is Gradual
    ramp = default_ramp(masks, plan, 1000)
    assert (ramp.initial, ramp.begin, ramp.end) == (0, 31, 500)
    assert ramp.final == plan.zeros_asked / plan.weights
    magnitude.apply_(network, planned(network, "0.5"))
    assert default_ramp(Masks(network, plan.names), plan, 1000).initial == pytest.approx(0.5, abs=1e-3)
