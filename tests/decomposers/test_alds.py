"""Plans: budgets met exactly, predictions equal to counts, the document, and the optimum against brute force."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from decomposers import alds
from decomposers.alds_plan import AldsPlan
from decomposers.errors import BadPlan, InfeasibleBudget, NothingToDecompose, PlanMismatch
from decomposers.folding import Form
from decomposers.options import AldsOptions, options_of
from decomposers.tables import Quantity
from tests.decomposers.nets import Attention, Mixed, Shared, counted_macs, images, seeded

IMAGE = images(1, 3, 16, 16)
NETS = {"mixed": Mixed, "shared": Shared, "attention": Attention}


def toy() -> nn.Module:
    """Three layers with few forms each."""
    return seeded(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, 5)))


TOY = images(1, 3, 9, 9)


@pytest.mark.parametrize("quantity", ["params", "macs"])
def test_least_score_equals_brute_force(quantity: Quantity) -> None:
    analysis = alds.analyse(toy(), TOY, AldsOptions(spend=False))
    costs = [table.weights if quantity == "params" else table.macs for table in analysis.tables]
    total = analysis.structure.params if quantity == "params" else analysis.structure.macs
    fixed = total - sum(int(column[0]) for column in costs)
    for share in (0.35, 0.5, 0.62, 0.8, 0.95):
        budget = int(share * total)
        best = min(
            max(float(table.score[row]) for table, row in zip(analysis.tables, rows, strict=True))
            for rows in product(*(range(len(column)) for column in costs))
            if fixed + sum(int(column[row]) for column, row in zip(costs, rows, strict=True)) <= budget
        )
        plan = alds.choose(analysis, cost=quantity, budget=budget)
        assert plan.max_score == best
        assert plan.planned == (plan.params_after if quantity == "params" else plan.macs_after) <= budget


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "options",
    [
        AldsOptions(),
        AldsOptions(objective="sum", error="fro"),
        AldsOptions(schemes=(0, 1, 2, 3), linear_groups=True),
        AldsOptions(max_groups=1, spend=False),
    ],
    ids=["default", "sum", "schemes", "one slice"],
)
def test_counts_of_the_model_equal_the_plan(name: str, options: AldsOptions) -> None:
    model, original = seeded(NETS[name]()), seeded(NETS[name]())
    plan = alds.plan(model, IMAGE, options, budget=0.5 * sum(p.numel() for p in model.parameters()))
    alds.apply_(model, plan)
    params = sum(parameter.numel() for parameter in model.parameters())
    assert params == plan.params_after == plan.planned <= plan.budget
    assert plan.macs_before - plan.macs_after == counted_macs(original, IMAGE) - counted_macs(model, IMAGE)
    assert alds.prove(original, model, plan, images(2, 3, 16, 16)).network < 1e-5
    assert all(layer.error is not None and layer.error <= layer.bound + 1e-9 for layer in plan.layers)


@pytest.mark.parametrize("name", NETS)
def test_mac_budgets_are_met(name: str) -> None:
    model = seeded(NETS[name]())
    analysis = alds.analyse(model, IMAGE, AldsOptions(schemes=(0, 1, 2, 3)))
    dense = counted_macs(model, IMAGE)
    plan = alds.choose(analysis, cost="macs", budget=0.6 * dense, total=dense)
    alds.apply_(model, plan)
    assert counted_macs(model, IMAGE) == plan.macs_after == plan.planned <= 0.6 * dense


def test_byte_budgets_count_the_whole_model() -> None:
    model = seeded(Mixed())
    analysis = alds.analyse(model, IMAGE)
    tensors = [*model.parameters(), *model.buffers()]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert analysis.bytes_total == total
    plan = alds.choose(analysis, cost="bytes", budget=total // 2)
    alds.apply_(model, plan)
    after = sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
    assert after == plan.planned <= total // 2


def test_measured_times_choose_only_among_measured_forms() -> None:
    model = seeded(Mixed())
    analysis = alds.analyse(model, IMAGE)
    timings = {
        "stem": {None: 2.0, Form(0, 1, 4): 1.0, Form(0, 1, 8): 1.5},
        "grouped": {None: 3.0, Form(0, 2, 3): 4.0},
        "reflect": {None: 3.0, Form(0, 1, 6): 1.5, Form(0, 1, 4): 1.8},
    }
    plan = alds.choose(analysis, cost="ms", budget=8.0, total=10.0, timings=timings)
    assert {layer.name: layer.form for layer in plan.layers} == {"reflect": Form(0, 1, 6), "stem": Form(0, 1, 8)}
    assert plan.planned == 10.0 - 1.5 - 0.5
    with pytest.raises(InfeasibleBudget) as caught:
        alds.choose(analysis, cost="ms", budget=7.0, total=10.0, timings=timings)
    assert caught.value.smallest == 7.5
    with pytest.raises(ValueError, match="needs measured timings"):
        alds.choose(analysis, cost="ms", budget=8.0, total=10.0)


def test_budget_of_everything_is_the_identity() -> None:
    model = seeded(Mixed())
    plan = alds.plan(model, IMAGE, budget=sum(p.numel() for p in model.parameters()))
    assert plan.layers == ()
    assert {item.reason for item in plan.kept} == {"the budget leaves it as it is"}
    before = dict(model.named_modules())
    alds.apply_(model, plan)
    assert dict(model.named_modules()) == before


def test_impossible_budgets_name_the_smallest_model() -> None:
    model = seeded(Mixed())
    analysis = alds.analyse(model, IMAGE)
    with pytest.raises(InfeasibleBudget, match="the smallest decomposition of this model has") as caught:
        alds.choose(analysis, budget=100)
    smallest = int(caught.value.smallest)
    plan = alds.choose(analysis, budget=smallest)
    assert plan.params_after == smallest
    assert {layer.form.rank for layer in plan.layers} == {1}
    with pytest.raises(InfeasibleBudget):
        alds.choose(analysis, budget=smallest - 1)
    with pytest.raises(ValueError, match="cost must be one of"):
        alds.choose(analysis, cost="watts", budget=1)  # type: ignore[arg-type]


def test_planning_leaves_the_model_alone_and_is_repeatable() -> None:
    model = seeded(Shared())
    before, modules = {k: v.clone() for k, v in model.state_dict().items()}, dict(model.named_modules())
    plans = [alds.plan(model, IMAGE, budget=4000) for _ in range(2)]
    assert plans[0] == plans[1]
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_plan_survives_json() -> None:
    model = seeded(Shared())
    plan = alds.plan(model, IMAGE, AldsOptions(ignore=("head",)), budget=4000)
    assert AldsPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    "change",
    [
        {"method": "magnitude"},
        {"schema_version": 99},
        {"layers": [{"name": "stem"}]},
        {"surprise": 1},
        {"kept": None},
    ],
)
def test_documents_that_are_no_plan_are_refused(change: dict[str, object]) -> None:
    document = alds.plan(seeded(Mixed()), IMAGE, budget=9000).to_dict()
    with pytest.raises(BadPlan, match="not a decomposition plan"):
        AldsPlan.from_dict(document | change)


@pytest.mark.parametrize("change", [{"rank": "3"}, {"scheme": 7}, {"groups": 0}, {"bias": 1}, {"rank": True}])
def test_layers_with_impossible_values_are_refused(change: dict[str, object]) -> None:
    document = alds.plan(seeded(Mixed()), IMAGE, budget=9000).to_dict()
    document["layers"][0] |= change
    with pytest.raises(BadPlan):
        AldsPlan.from_dict(document)


def test_plan_for_another_model_is_refused_and_nothing_changes() -> None:
    plan = alds.plan(seeded(Mixed()), IMAGE, budget=9000)
    other = seeded(Mixed())
    other.reflect = nn.Conv2d(24, 16, 5, padding="same", bias=False)
    other.head = nn.Identity()
    before = dict(other.named_modules())
    with pytest.raises(PlanMismatch) as caught:
        alds.apply_(other, plan)
    assert any("reflect has a weight of (16, 24, 5, 5), planned for (16, 24, 3, 3)" in p for p in caught.value.problems)
    assert dict(other.named_modules()) == before
    other = seeded(Shared())
    plan = alds.plan(other, IMAGE, budget=4000)
    untied = seeded(Shared())
    untied.right.weight = nn.Parameter(untied.left.weight.detach().clone())
    untied.again = nn.Conv2d(16, 16, 3, padding=1)
    with pytest.raises(PlanMismatch, match="again was the same module as middle, now it is another"):
        plan.applies_to(untied)
    with pytest.raises(PlanMismatch, match="right shared its weight with left, now it does not"):
        plan.applies_to(untied)


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(NothingToDecompose, match="depthwise convolution"):
        alds.analyse(nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Flatten()), IMAGE)


def test_baselines_keep_equal_shares() -> None:
    model = seeded(Mixed())
    budget = 0.5 * sum(parameter.numel() for parameter in model.parameters())
    svd = alds.plan(model, IMAGE, options_of("svd"), budget=budget)
    assert {layer.groups for layer in svd.layers} == {1}
    full = {"stem": 16, "grouped": 12, "reflect": 16, "up": 12, "head": 10}
    removed = {layer.name: 1 - layer.rank / full[layer.name] for layer in svd.layers}
    worst = max(removed.values())
    for layer in svd.layers:  # one rank less would be above the common share
        assert 1 - (layer.rank - 1) / full[layer.name] > worst or layer.rank == 1
    energy = alds.plan(model, IMAGE, options_of("svd-energy"), budget=budget)
    for layer in energy.layers:
        weight = model.get_submodule(layer.name).weight.detach().double()
        if layer.kind in ("Conv2d", "Linear") and layer.name != "grouped":
            values = torch.linalg.svdvals(weight.flatten(1)).square()
            assert layer.minimised == pytest.approx(float((values[layer.rank :].sum() / values.sum()).sqrt()))


def test_options_are_checked() -> None:
    for wrong in (
        {"objective": "mean"},
        {"error": "l1"},
        {"schemes": ()},
        {"schemes": (4,)},
        {"max_groups": 0},
        {"error": "output", "schemes": (0, 1)},
        {"error": "variance"},
    ):
        with pytest.raises(ValueError, match=r"must be|is defined for"):
            AldsOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method must be one of"):
        options_of("tucker")  # type: ignore[arg-type]


def test_error_curve_is_the_frontier_of_one_layer() -> None:
    analysis = alds.analyse(toy(), TOY)
    curve = alds.error_curve(analysis, "1")
    costs, errors = [point[0] for point in curve], [point[1] for point in curve]
    assert costs == sorted(costs)
    assert errors == sorted(errors, reverse=True)
    assert curve[-1] == (6 * 4 * 9, 0.0, None)
    with pytest.raises(KeyError):
        alds.error_curve(analysis, "9")


def test_explanation_calls_the_score_a_score() -> None:
    model = seeded(Mixed())
    plan = alds.plan(model, IMAGE, AldsOptions(ignore=("head",)), budget=9000)
    text = plan.explain()
    assert "the score is no bound of the error, the bound is sqrt(k) x score" in text
    assert "left alone head: ignored on request" in text
    assert "left alone depthwise: depthwise convolution" in text
    for layer in plan.layers:
        assert f"{layer.name}: scheme 0, groups {layer.groups} x rank {layer.rank}, score {layer.score:.4f}" in text


def test_spectra_are_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = seeded(Mixed()), tmp_path / "spectra.npz"
    first = alds.analyse(model, IMAGE, cache=file)

    def never(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(alds, "spectra", never)
    second = alds.analyse(model, IMAGE, cache=file)
    for before, after in zip(first.tables, second.tables, strict=True):
        assert np.array_equal(before.score, after.score)
        assert np.array_equal(before.forms, after.forms)
    model.head.weight.data[0, 0] += 1
    with pytest.raises(AssertionError, match="computed again"):
        alds.analyse(model, IMAGE, cache=file)


def test_linear_layers_over_sequences_are_never_sliced() -> None:
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    sliced = alds.analyse(model, torch.zeros(2, 12), AldsOptions(linear_groups=True))
    whole = alds.analyse(model, torch.zeros(2, 5, 12), AldsOptions(linear_groups=True))
    assert {int(k) for table in sliced.tables for k in table.forms[:, 1]} > {1, 2}
    assert {int(k) for table in whole.tables for k in table.forms[:, 1]} == {1}
