"""The training loop learns, keeps zeros and their momentum zero, resumes bit for bit, and reports divergence."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compress_cli.errors import UsageError
from compress_cli.training import finetune
from compress_cli.training.choosing import Start, choose_recipe
from compress_cli.training.recipe import Recipe
from compress_cli.training.saving import STATE, load_state
from compress_cli.training.sparse import Dense, Frozen, Gradual
from compress_cli.training.trainer import Trainer, TrainingDiverged
from pruners import magnitude
from pruners.masks import Masks
from pruners.schedules import CubicSchedule

RECIPE = Recipe(epochs=2, lr=0.05, batch_size=32)


def pruned(network: nn.Module, sparsity: str = "0.8") -> tuple[nn.Module, magnitude.MagnitudePlan]:
    plan = magnitude.plan(magnitude.candidates_in_module(network), magnitude.MagnitudeOptions(sparsity))
    magnitude.apply_(network, plan)
    return network, plan


def zero_places(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight == 0 for name, weight in network.named_parameters() if weight.dim() > 1}


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


def test_fine_tuning_a_pruned_network_improves_it_and_keeps_every_zero(
    open_run: Callable[..., Any], network: nn.Module
) -> None:
    model, plan = pruned(network)
    before = zero_places(model)
    with open_run(epochs=3, lr=0.05) as (session, quality):
        start = quality.evaluate(model)
        record = finetune(model, quality, session=session, constraint=Masks(model, plan.names), plan=plan)
        end = quality.evaluate(model)
    assert end["digit"].loss < start["digit"].loss
    assert end["digit"].value > 50 > start["digit"].value  # an untrained network names one digit in ten
    assert all(bool((weight == 0)[before[name]].all()) for name, weight in model.named_parameters() if name in before)
    assert record["steps"] == 3 * (192 // 32)
    assert [row["epoch"] for row in record["history"]] == [1, 2, 3]
    assert record["history"][-1]["loss"] < record["history"][0]["loss"]
    assert not model.training


def test_masked_weights_have_no_momentum_and_no_gradient(open_run: Callable[..., Any], network: nn.Module) -> None:
    model, plan = pruned(network)
    places = zero_places(model)
    with open_run() as (session, quality):
        masks = Frozen(Masks(model, plan.names))
        trainer = Trainer(model, quality, RECIPE, session, sparsifier=masks, teacher=None)
        trainer.run()
        for name, weight in model.named_parameters():
            if name in plan.names:
                momentum = trainer.optimizer.state[weight]["momentum_buffer"]
                assert int(torch.count_nonzero(momentum[places[name]])) == 0
                assert int(torch.count_nonzero(momentum)) > 0
                assert weight.grad is not None
                assert int(torch.count_nonzero(weight.grad[places[name]])) == 0


def test_one_step_equals_sgd_written_out_by_hand(open_run: Callable[..., Any], network: nn.Module) -> None:
    """The second step of plain SGD with momentum: v = 0.9 v + g, w = w - lr v, both gradients by autograd here."""
    reference = copy.deepcopy(network).train()
    recipe = Recipe(epochs=1, lr=0.1, batch_size=96, weight_decay=0.0, curve="constant", warmup=0.0)
    with open_run() as (session, quality):
        trainer = Trainer(network, quality, recipe, session, sparsifier=Dense(), teacher=None)
        assert trainer.steps == 2
        velocity = {name: torch.zeros_like(weight) for name, weight in reference.named_parameters()}
        for batch in quality.train.batches(trainer._pieces(0), device=torch.device("cpu"), epoch=0):
            outputs = reference(*batch.inputs)
            loss = nn.functional.cross_entropy(outputs["digit"], batch.target["digit"])
            loss = loss + nn.functional.cross_entropy(outputs["parity"], batch.target["parity"])
            grads = torch.autograd.grad(loss, list(reference.parameters()))
            for (name, weight), grad in zip(reference.named_parameters(), grads, strict=True):
                velocity[name] = 0.9 * velocity[name] + grad
                weight.data -= 0.1 * velocity[name]
        trainer.run()
    theirs = dict(reference.named_parameters())
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-5)


def test_accumulated_parts_equal_the_whole_batch_without_batch_norm(open_run: Callable[..., Any]) -> None:
    def train(accumulate: int) -> nn.Module:
        torch.manual_seed(0)
        model = Linear()
        recipe = Recipe(epochs=1, lr=0.1, batch_size=64, accumulate=accumulate)
        with open_run() as (session, quality):
            finetune(model, quality, session=session, recipe=recipe)
        return model

    whole, parts = train(1), train(4)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.digit = nn.Linear(64, 10)
        self.parity = nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"digit": self.digit(x.flatten(1)), "parity": self.parity(x.flatten(1))}


@pytest.mark.parametrize("stop_at", [3, 6])
def test_a_run_stopped_by_a_signal_resumes_bit_for_bit(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    recipe = Recipe(epochs=2, lr=0.05, batch_size=32, ema=0.9)
    model, plan = pruned(network)
    fresh, again, straight = (copy.deepcopy(model) for _ in range(3))
    with open_run() as (session, quality):
        finetune(straight, quality, session=session, recipe=recipe, constraint=Masks(straight, plan.names), plan=plan)

    original = Trainer._step

    def interrupted(self: Trainer, batches: Any) -> None:
        original(self, batches)
        if self.progress.step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with open_run() as (session, quality), pytest.raises(KeyboardInterrupt):
        finetune(fresh, quality, session=session, recipe=recipe, constraint=Masks(fresh, plan.names), plan=plan)
    monkeypatch.setattr(Trainer, "_step", original)
    with open_run(resume=True) as (session, quality):
        masks = Masks(again, plan.names)
        record = finetune(again, quality, session=session, recipe=recipe, constraint=masks, plan=plan)
    assert same_weights(again, straight)
    assert record["steps"] == 12
    assert len(record["history"]) == 2


def test_a_finished_run_is_not_trained_again(open_run: Callable[..., Any], network: nn.Module) -> None:
    first, second = network, copy.deepcopy(network)
    with open_run() as (session, quality):
        record = finetune(first, quality, session=session, recipe=RECIPE)
    with open_run(resume=True) as (session, quality):
        again = finetune(second, quality, session=session, recipe=RECIPE)
    assert same_weights(first, second)
    assert again == record


def test_resuming_with_another_recipe_is_refused(open_run: Callable[..., Any], network: nn.Module) -> None:
    with open_run() as (session, quality):
        finetune(network, quality, session=session, recipe=RECIPE)
    other = Recipe(epochs=2, lr=0.01, batch_size=32)
    with open_run(resume=True) as (session, quality), pytest.raises(UsageError, match="another training recipe: lr"):
        finetune(network, quality, session=session, recipe=other)


def test_a_diverging_run_stops_with_one_clear_error(open_run: Callable[..., Any], network: nn.Module) -> None:
    recipe = Recipe(epochs=2, lr=1e30, batch_size=32, warmup=0.0)
    with open_run() as (session, quality), pytest.raises(TrainingDiverged, match="no state had been saved") as caught:
        finetune(network, quality, session=session, recipe=recipe)
    assert "smaller --lr" in caught.value.fix
    assert caught.value.exit_code == 4


def test_a_run_that_diverges_late_leaves_the_last_good_state(open_run: Callable[..., Any], network: nn.Module) -> None:
    with open_run() as (session, quality):
        trainer = Trainer(network, quality, RECIPE, session, sparsifier=Dense(), teacher=None)
        trainer.recipe = _Poisoned(RECIPE)  # type: ignore[assignment]
        with pytest.raises(TrainingDiverged, match=r"last good state is .*last\.pt"):
            trainer.run()
        state = load_state(session.folder.file(STATE))
    assert state is not None
    assert state["progress"]["step"] == 6
    assert all(bool(torch.isfinite(value).all()) for value in state["weights"].values() if value.is_floating_point())


class _Poisoned:
    """A recipe whose learning rate breaks at some step."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def rate_at(self, step: int, steps: int) -> float:
        return 0.01 if step < 8 else float("nan")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recipe, name)


def test_a_gradual_run_ends_with_exactly_the_zeros_asked(open_run: Callable[..., Any], network: nn.Module) -> None:
    plan = magnitude.plan(magnitude.candidates_in_module(network), magnitude.MagnitudeOptions("0.9"))
    schedule = CubicSchedule(0.0, 0.9, 0, 8)
    masks = Masks(network, plan.names)
    with open_run(epochs=2) as (session, quality):
        sparsifier = Gradual(masks, schedule, plan)
        seen = []
        original = sparsifier.after_step_

        def watched(optimizer: torch.optim.Optimizer, step: int) -> None:
            original(optimizer, step)
            seen.append(sum(masks.zeros().values()))

        sparsifier.after_step_ = watched  # type: ignore[method-assign]
        Trainer(network, quality, RECIPE, session, sparsifier=sparsifier, teacher=None).run()
    wanted = [int(plan.weights * schedule.sparsity_at(step) + 0.5) for step in range(1, 13)]
    assert seen == wanted
    assert sum(int((w == 0).sum()) for n, w in network.named_parameters() if n in plan.names) == plan.zeros_asked


def test_the_averaged_weights_keep_the_zeros_and_are_the_final_ones(
    open_run: Callable[..., Any], network: nn.Module
) -> None:
    model, plan = pruned(network)
    places = zero_places(model)
    recipe = Recipe(epochs=1, lr=0.05, batch_size=32, ema=0.5)
    with open_run() as (session, quality):
        masks = Frozen(Masks(model, plan.names))
        trainer = Trainer(model, quality, recipe, session, sparsifier=masks, teacher=None)
        trainer.run()
    assert trainer.average is not None
    assert all(torch.equal(value, trainer.average.tensors[name]) for name, value in model.state_dict().items())
    assert all(bool((weight == 0)[places[name]].all()) for name, weight in model.named_parameters() if name in places)


def test_learning_rate_curves() -> None:
    linear = Recipe(1, 0.1, warmup=0.1)
    assert [round(linear.rate_at(step, 100), 6) for step in (0, 9, 10, 55, 99)] == [
        round(0.1 / 11, 6),
        round(1 / 11, 6),
        0.1,
        0.05,
        round(0.1 / 90, 6),
    ]
    cosine = Recipe(1, 0.2, curve="cosine", warmup=0.0)
    assert cosine.rate_at(50, 100) == pytest.approx(0.1)
    assert cosine.rate_at(25, 100) == pytest.approx(0.2 * (1 + 2**-0.5) / 2)

    cycle = Recipe(1, 0.2, curve="one-cycle")
    assert [round(cycle.rate_at(step, 100), 6) for step in (0, 29, 30, 65)] == [
        round(0.2 / 31, 6),
        round(0.2 * 30 / 31, 6),
        0.2,
        0.1,
    ]
    assert Recipe(1, 0.2, curve="constant", warmup=0.0).rate_at(99, 100) == 0.2


def test_clipped_gradients_have_the_asked_norm(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    original = torch.optim.SGD.step

    def watched(self: torch.optim.Optimizer, *arguments: Any, **named: Any) -> Any:
        grads = [weight.grad.flatten() for group in self.param_groups for weight in group["params"]]
        norms.append(torch.cat(grads).norm().item())
        return original(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    with open_run() as (session, quality):
        finetune(network, quality, session=session, recipe=Recipe(1, 0.01, batch_size=96, clip_norm=0.25))
    assert norms == pytest.approx([0.25, 0.25], rel=1e-4)


def test_default_recipe_follows_the_sparsity(open_run: Callable[..., Any]) -> None:
    with open_run() as (session, _):
        dense, sparse, sparser = (
            choose_recipe(session.config, Start(images=192, sparsity=value)) for value in (None, 0.9, 0.95)
        )
    assert (dense.weight_decay, sparse.weight_decay, sparser.weight_decay) == (1e-4, 1e-4, 0.0)
    assert dense.lr < sparse.lr
    assert any("weight decay" in reason for reason in dense.reasons)
    assert [any("--schedule st3" in line for line in recipe.reasons) for recipe in (dense, sparse)] == [False, True]
