"""Default recipes: what the rules look at changes the numbers, and what was given stays."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress_cli.errors import UsageError
from compress_cli.training import choosing, finetune
from compress_cli.training.choosing import Start, choose_recipe, distance_left, only_layer_norms
from pruners import magnitude
from pruners.masks import Masks

CPU = torch.device("cpu")


def recipe_of(open_run: Callable[..., Any], start: Start, **flags: Any) -> Any:
    with open_run(**{"epochs": 1, "batch_size": 128, **flags}) as (session, _):
        return choose_recipe(session.config, start)


def test_the_rate_grows_with_damage_and_length_up_to_that_of_long_training(open_run: Callable[..., Any]) -> None:
    rates = {
        (distance, images): recipe_of(open_run, Start(images, None, distance)).lr
        for distance in (0.05, 0.1, 0.5)
        for images in (2_560, 10_240, 51_200)
    }
    assert rates[0.1, 10_240] == pytest.approx(0.07 * 0.1 * (10_240 / 10_000) ** 0.5, rel=0.05)
    assert rates[0.1, 2_560] == pytest.approx(rates[0.1, 10_240] / 2, rel=0.05)
    assert rates[0.05, 10_240] == pytest.approx(rates[0.1, 10_240] / 2, rel=0.05)
    unknown = recipe_of(open_run, Start(10_240)).lr
    assert rates[0.1, 51_200] < rates[0.5, 10_240] == rates[0.5, 51_200] == unknown
    assert recipe_of(open_run, Start(10_240, None, 0.0)).lr == pytest.approx(unknown / 50)
    assert recipe_of(open_run, Start(10_240, None, 0.1), epochs=4).lr == pytest.approx(2 * rates[0.1, 10_240], rel=0.05)


def test_rates_follow_the_batch(open_run: Callable[..., Any]) -> None:
    """By the square root."""
    usual, small, large = (recipe_of(open_run, Start(51_200), batch_size=size).lr for size in (128, 32, 512))
    assert (small, large) == pytest.approx((usual / 2, usual * 2))
    usual, less, more = (recipe_of(open_run, Start(10_240, None, 0.1), batch_size=size).lr for size in (128, 32, 512))
    assert (less, more) == pytest.approx((usual / 2, usual * 2), rel=0.05)
    few = recipe_of(open_run, Start(32), batch_size=128)  # there are not more in a batch than there are
    assert few.lr == small


def test_networks_with_layer_norms_get_clipped_gradients_unless_told_otherwise(open_run: Callable[..., Any]) -> None:
    start = Start(10_240, layer_norms=True)
    assert recipe_of(open_run, start).clip_norm == 1.0
    assert recipe_of(open_run, start, recipe=["clip_norm=3"]).clip_norm == 3.0
    assert recipe_of(open_run, Start(10_240)).clip_norm is None


def test_adam_has_rates_of_its_own(open_run: Callable[..., Any]) -> None:
    adam, sgd = (recipe_of(open_run, Start(10_240), recipe=[f"optimizer={name}"]).lr for name in ("adamw", "sgd"))
    assert adam == sgd / 40
    quarter = recipe_of(open_run, Start(10_240), recipe=["optimizer=adamw"], batch_size=32).lr
    assert quarter == adam / 2


def test_a_rate_that_is_given_stays(open_run: Callable[..., Any]) -> None:
    chosen = recipe_of(open_run, Start(2_560, None, 0.01), lr=0.3)
    assert chosen.lr == 0.3
    assert not any(reason.startswith("learning rate") for reason in chosen.reasons)


def test_only_layer_norms() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    assert only_layer_norms(layer)
    assert not only_layer_norms(nn.Sequential(layer, nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
    assert not only_layer_norms(nn.Linear(4, 4))


def test_the_distance_is_the_error_over_the_spread_whatever_the_batches() -> None:
    one, two = nn.Linear(5, 3), nn.Linear(5, 3)
    inputs = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, found = one(inputs), two(inputs)
    wanted = (found - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum()
    for size in (24, 5, 1):
        batches = [(part,) for part in inputs.split(size)]
        assert distance_left(one, two, batches, CPU) == pytest.approx(float(wanted), rel=1e-5)
    assert distance_left(one, one, batches, CPU) == 0.0


class Several(nn.Module):
    """Two outputs: the input, and `factor` times it."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"first": x, "second": x * self.factor}


def test_the_worst_output_counts() -> None:
    batches = [(torch.randn(8, 3),)]
    squared = (batches[0][0] ** 2).sum() / (batches[0][0] - batches[0][0].mean(0)).square().sum()
    assert distance_left(Several(1.0), Several(3.0), batches, CPU) == pytest.approx(4 * float(squared), rel=1e-5)
    assert distance_left(Several(1.0), Several(float("nan")), batches, CPU) is None


class Boxes(nn.Module):
    """Finds a row for each positive number, as a detector does."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        found = x + self.shift
        return found[found > 0]


def test_no_distance_where_outputs_do_not_compare() -> None:
    batches = [(torch.tensor([0.1, 0.5, 2.0]),), (torch.tensor([0.1, 0.7, 1.0]),)]
    assert distance_left(Boxes(0.0), Boxes(0.0), batches, CPU) == 0.0
    assert distance_left(Boxes(0.0), Boxes(0.2), batches, CPU) == pytest.approx(0.17, abs=0.1)
    assert distance_left(Boxes(0.0), Boxes(-0.3), batches, CPU) is None
    assert distance_left(Boxes(0.0), Boxes(-0.3), [(torch.tensor([1.0, 2.0]),), *batches], CPU) is None
    broken = nn.Linear(3, 3)
    nn.init.constant_(broken.weight, float("nan"))
    assert distance_left(nn.Linear(3, 3), broken, batches, CPU) is None


def trained(open_run: Callable[..., Any], model: nn.Module, sparsity: str, **how: Any) -> dict[str, Any]:
    """One-shot magnitude pruning and an epoch on the digits."""
    original = copy.deepcopy(model)
    plan = magnitude.plan(magnitude.candidates_in_module(model), magnitude.MagnitudeOptions(sparsity))
    magnitude.apply_(model, plan)
    with open_run(**{"sparsity": sparsity, "epochs": 1, **how}) as (session, quality):
        return finetune(
            model, quality, session=session, constraint=Masks(model, plan.names), plan=plan, teacher=original
        )


def test_a_run_measures_what_pruning_left(open_run: Callable[..., Any], network: nn.Module) -> None:
    mild, hard = (trained(open_run, copy.deepcopy(network), sparsity) for sparsity in ("0.02", "0.9"))
    assert mild["lr"] < hard["lr"] / 4
    assert "of their variance" in mild["reasons"][0]
    grown = trained(open_run, copy.deepcopy(network), "0.02", schedule="gradual")
    assert "a high restart" in grown["reasons"][0]


def test_finetune_measures_only_against_a_teacher(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress_cli.training.teacher.open_teacher", lambda config: copy.deepcopy(network))
    reasons = []
    for teacher in (None, "original.pt"):
        with open_run(epochs=1) as (session, quality):
            session.config = dataclasses.replace(session.config, verb="finetune", teacher=teacher)
            record = finetune(copy.deepcopy(network), quality, session=session, teacher=copy.deepcopy(network))
        reasons.append(record["reasons"][0])
    assert "how much is lost is not known" in reasons[0]
    assert "squared distance to the original's is 0 of" in reasons[1]


def test_a_network_with_layer_norms_is_recognised_by_a_run(open_run: Callable[..., Any]) -> None:
    from compress_cli.demo.net import two_task_cnn

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.net = nn.LayerNorm(8), two_task_cnn()

        def forward(self, x: Tensor) -> Any:
            return self.net(self.norm(x))

    network = Normed()
    for name, layer in list(network.net.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            setattr(network.net, name, nn.Identity())
    with open_run(epochs=1) as (session, quality):
        assert finetune(network, quality, session=session)["clip_norm"] == 1.0


def test_a_resumed_run_keeps_the_rate_it_began_with(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(open_run, copy.deepcopy(network), "0.02")
    monkeypatch.setattr(choosing, "distance_left", lambda *_: 0.9)
    resumed = trained(open_run, copy.deepcopy(network), "0.02", resume=True)
    assert (resumed["lr"], resumed["reasons"]) == (whole["lr"], whole["reasons"])
    with pytest.raises(UsageError, match="lr changed"):
        trained(open_run, copy.deepcopy(network), "0.02", resume=True, lr=0.5)
