"""Scores by formulas written out, and selection to exact budgets."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruners.channels import (
    BadChannelOptions,
    Budget,
    ChannelsPlan,
    CostModel,
    Groups,
    InfeasibleBudget,
    NothingToRemove,
    ScoreOptions,
    SelectionOptions,
    analyse,
    describe,
    fit,
    make_plan,
    mean_gradients,
    mean_squared_gradients,
    plan,
    score,
    select,
    select_share,
)
from pruners.errors import BadWeights
from tests.pruners.channels.channel_nets import SUITE
from tests.pruners.channels.net_parts import example, make

CASES = {case.name: case for case in SUITE}


def net(name: str = "chain") -> nn.Module:
    return make(CASES[name])


def first_group(model: nn.Module, name: str, **more: object) -> np.ndarray:
    options = ScoreOptions(name, "none")  # type: ignore[arg-type]
    return score(model, analyse(model, example()), options, **more)[0]  # type: ignore[arg-type]


def test_magnitude_l1_and_bn_are_their_formulas() -> None:
    model = net()
    out, inner, gamma = model.c0.weight.double(), model.c1.weight.double(), model.bn.weight.double()
    squares = (out.square().sum((1, 2, 3)) + inner.square().sum((0, 2, 3)) + gamma.square()) / 3
    absolute = (out.abs().sum((1, 2, 3)) + inner.abs().sum((0, 2, 3)) + gamma.abs()) / 3
    assert np.allclose(first_group(model, "magnitude"), squares.detach().numpy())
    assert np.allclose(first_group(model, "l1"), absolute.detach().numpy())
    assert np.allclose(first_group(model, "bn"), gamma.abs().detach().numpy())


def test_lamp_ranks_by_the_share_of_what_is_not_smaller() -> None:
    model = net()
    squares = first_group(model, "magnitude")
    expected = [value / squares[squares >= value].sum() for value in squares]
    assert np.allclose(first_group(model, "lamp"), expected)


def test_fpgm_sums_distances_to_the_other_filters() -> None:
    model = net()
    parts = []
    for tensor, dim in ((model.c0.weight, 0), (model.c1.weight, 1)):  # a norm's scale is no filter
        rows = tensor.detach().double().movedim(dim, 0).reshape(16, -1)
        parts.append([sum(float((a - b).norm()) for b in rows) for a in rows])
    assert np.allclose(first_group(model, "fpgm"), np.mean(parts, axis=0))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def test_taylor_and_fisher_use_every_sample_and_batch_norms() -> None:
    model, (images,) = net(), example()
    images = torch.cat([images, images.flip(0) * 0.5, images * 2])
    labels = torch.arange(6) % 5
    before = {name: flag.requires_grad for name, flag in model.named_parameters()}
    singles = [(images[i : i + 1], labels[i : i + 1]) for i in range(6)]
    first, second = mean_gradients(model, [(images, labels)], loss), mean_squared_gradients(model, singles, loss)
    each = [mean_gradients(model, [pair], loss)["bn.weight"] for pair in singles]
    assert torch.allclose(first["bn.weight"], torch.stack(each).mean(0), atol=1e-6)
    assert torch.allclose(second["bn.weight"], torch.stack(each).square().mean(0), atol=1e-6)
    bigger = {**first, "bn.weight": first["bn.weight"] * 1e6}
    plain, scaled = (first_group(model, "taylor", gradients=g) for g in (first, bigger))
    assert (scaled > 100 * plain).all()
    theta = model.bn.weight.detach().double()
    only = {name: torch.zeros_like(tensor) for name, tensor in second.items()} | {"bn.weight": second["bn.weight"]}
    expected = (theta.square() * second["bn.weight"].double() / 3).numpy()
    assert np.allclose(first_group(model, "fisher", gradients=only), expected)
    assert {name: flag.requires_grad for name, flag in model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scores_that_need_images_say_so_and_names_are_checked() -> None:
    model = net()
    with pytest.raises(BadChannelOptions, match="needs gradients"):
        first_group(model, "taylor")
    with pytest.raises(BadChannelOptions, match="magnitude, l1"):
        ScoreOptions("best")  # type: ignore[arg-type]
    with torch.no_grad():
        model.c0.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(BadWeights, match="c0"):
        first_group(model, "magnitude")


@pytest.mark.parametrize("quantity", ["params", "macs"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_budgets_are_met_and_hardly_undershot(quantity: str, share: float) -> None:
    model = net("residual")
    groups = analyse(model, example())
    dense = getattr(CostModel(groups), quantity)
    made = plan(groups, score(model, groups), Budget(**{quantity: int(dense * share)}))
    found = getattr(made, f"{quantity}_after")
    assert dense * (share - 0.05) < found <= dense * share


def test_equal_scores_lose_exactly_the_share_and_the_first_indices() -> None:
    model = net()
    groups = analyse(model, example())
    ones = [np.ones(group.units) for group in groups.groups]
    removed = select_share(groups, ones, 0.2, SelectionOptions())
    assert removed == {0: list(range(8))}


def test_whole_model_budget_is_the_identity_and_the_impossible_is_refused() -> None:
    model = net()
    groups = analyse(model, example())
    cost = CostModel(groups)
    assert select(groups, score(model, groups), Budget(macs=cost.macs), SelectionOptions()) == {}
    with pytest.raises(InfeasibleBudget) as caught:
        plan(groups, score(model, groups), Budget(macs=1))
    least = make_plan(groups, {"c0": range(1, 16), "c1": range(2, 24)}).macs_after  # 5 % of 24 is 1.2: two stay
    assert caught.value.smallest == least
    frozen = analyse(model, example(), ignore=["c0", "c1"])
    with pytest.raises(NothingToRemove, match="protected by the user"):
        plan(frozen, score(model, frozen), Budget(macs=1))


def test_rounding_keeps_multiples_and_still_meets_the_budget() -> None:
    model = net("residual")
    groups = analyse(model, example())
    dense = CostModel(groups).macs
    made = plan(groups, score(model, groups), Budget(macs=dense // 2), SelectionOptions(round_to=8))
    assert made.macs_after <= dense // 2
    assert {len(cut.kept) % 8 for cut in made.groups} == {0}
    heads = net("attn_qkv_flexible")
    groups = analyse(heads, example())
    budget = Budget(macs=CostModel(groups).macs * 6 // 10)
    made = plan(groups, score(heads, groups), budget, SelectionOptions(round_to=8))
    assert all(len(kept) % 8 == 0 for name, dims in made.keep.items() for kept in dims.values() if "weight" in name)


def test_scopes_take_equal_shares() -> None:
    model = net("residual")
    groups = analyse(model, example())
    scores = score(model, groups, ScoreOptions("magnitude", "none"))
    budget = Budget(macs=CostModel(groups).macs // 2)
    layer = plan(groups, scores, budget, SelectionOptions(scope="layer"))
    shares = [len(cut.removed) / cut.units for cut in layer.groups]
    assert max(shares) - min(shares) < 0.1
    same = plan(groups, scores, budget, SelectionOptions(scope="isomorphic"))
    assert same.macs_after <= budget.macs  # type: ignore[operator]


@pytest.mark.parametrize("floor", ["8", "50%"])
def test_floors_hold(floor: str) -> None:
    model = net()
    groups = analyse(model, example())
    removed = select_share(groups, score(model, groups), 1.0, SelectionOptions(min_channels=floor))
    left = [group.units - len(removed[place]) for place, group in enumerate(groups.groups)]
    assert left == ([8, 8] if floor == "8" else [8, 12])
    with pytest.raises(BadChannelOptions, match="min_channels"):
        SelectionOptions(min_channels="half")


def test_two_selections_in_one_process_do_not_touch_each_other() -> None:
    model = net("residual")
    groups = analyse(model, example())
    scores = score(model, groups)
    budget = Budget(macs=CostModel(groups).macs // 2)
    first = plan(groups, scores, budget)
    plan(groups, scores, Budget(macs=budget.macs // 2))  # type: ignore[operator]
    assert plan(groups, scores, budget) == first
    other = copy.deepcopy(model)
    assert plan(analyse(other, example()), scores, budget) == first


def test_description_says_what_one_channel_saves() -> None:
    model = net()
    document = describe(analyse(model, example()))
    rows = {row["name"]: row for row in document["groups"]}
    positions = 2 * 16 * 16
    assert rows["c0"]["macs_per_unit"] == positions * 9 * (3 + 24)
    assert rows["c0"]["params_per_unit"] == 3 * 9 + 1 + 2 + 24 * 9
    assert rows["c1"]["macs_per_unit"] == positions * 9 * 16 + 2 * 5
    assert ["an input without channels to follow at conv2d (channel_nets.py:42)", 1, 3] in [
        [text.replace(text[text.index("(") :], "(channel_nets.py:42)"), tensors, count]
        for text, tensors, count in document["why"]
        if "(" in text
    ]


def test_attribute_that_holds_a_width_is_edited() -> None:
    class Baked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.conv, self.width = nn.Linear(3, 16 * 16), nn.Conv2d(16, 24, 3, padding=1), 16
            self.fc = nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x.mean((2, 3))).view(-1, self.width, 4, 4)
            return self.fc(self.conv(y).relu().mean((2, 3)))

    torch.manual_seed(0)
    model = Baked().eval()
    groups = analyse(model, example())
    place = next(i for i, group in enumerate(groups.groups) if group.name == "up")
    fitted = fit(model, example(), groups, lambda found: make_plan(found, {place: [1, 4, 5]}))
    assert fitted.plan.tier == 2
    assert [(edit.name, edit.old, edit.new) for edit in fitted.plan.attributes] == [("width", 16, 13)]
    assert fitted.model.width == 13
    assert type(fitted.model) is Baked


def test_chunks_lose_the_same_channels_when_the_code_halves_them() -> None:
    model = net("chunk_c2f")
    groups = analyse(model, example())
    place = next(i for i, group in enumerate(groups.groups) if group.name == "c0")

    def choose(found: Groups) -> ChannelsPlan:
        return make_plan(found, {place: [0, 1, 2] if found is groups else [0, 5]})

    fitted = fit(model, example(), groups, choose)
    assert fitted.plan.tier == 3
    assert fitted.plan.constraints[0].startswith("parts of chunk lose the same channels")
    gone = fitted.plan.removed("c0.weight", 0)
    assert len(gone) == 4
    assert [index + 16 for index in gone[:2]] == list(gone[2:])
