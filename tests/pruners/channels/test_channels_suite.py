"""Every pattern of specs/channels.md section 5.3: cut half of the units, in the gentlest tier that can be proved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pruners.channels import Group, SurgeryFailed, analyse, apply_, fit, make_plan, prove
from tests.pruners.channels.channel_nets import SUITE
from tests.pruners.channels.extra_nets import EXTRA
from tests.pruners.channels.net_parts import Case, Outputs, example, make
from tests.pruners.channels.picking import pick

SIZES_IN_CODE = {
    "linear_view_conv", "channel_slice", "split_uneven", "shuffle_hardcoded", "optionA_pad", "layer_scale_fixed_shape",
    "gram_matrix", "attn_qkv_fixed", "attn_separate_fixed", "mha", "shift_into_zeros", "slice_write", "alias_add",
    "slice_write_at_random", "rows_of_all_images",
}  # fmt: skip
"""Their forward holds sizes as numbers: cutting tensors alone cannot be right."""

FREER = {"l2_normalize": 0.35, "glu": 0.40, "grouped_transposed": 0.40, "einsum_proj": 0.50}
"""Where this analysis frees more than the prototype whose ratios the specification lists."""


@pytest.mark.parametrize("case", [c for c in SUITE + EXTRA if c.name not in SIZES_IN_CODE], ids=lambda c: c.name)
def test_cut_in_place_is_proved(case: Case) -> None:
    model, inputs = make(case), example()
    before = copy.deepcopy(model.state_dict())
    groups = analyse(model, inputs)
    plan = make_plan(groups, pick(groups, model, 1 - case.keep))
    small = copy.deepcopy(model)
    apply_(small, plan)
    proof = prove(model, small, plan, inputs, groups=groups)
    assert [check for check in proof.checks if not check.passed] == []
    assert {"masked equivalence", "channel identity", "train forward and backward"} <= {c.name for c in proof.checks}
    assert sum(p.numel() for p in small.parameters()) == plan.params_after
    assert plan.params_after / plan.params_before <= FREER.get(case.name, case.ratio) + 0.12
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("case", [c for c in SUITE + EXTRA if c.name in SIZES_IN_CODE], ids=lambda c: c.name)
def test_sizes_in_code_run_as_the_rewritten_graph(case: Case) -> None:
    model, inputs = make(case), example()
    groups = analyse(model, inputs)
    plan = make_plan(groups, pick(groups, model, 1 - case.keep))
    with pytest.raises(SurgeryFailed, match="tier 1"):
        fit(model, inputs, groups, lambda _: plan, tiers=(1,))
    fitted = fit(model, inputs, groups, lambda _: plan, tiers=(4,))
    assert fitted.proof.passed
    assert fitted.plan.tier == 4
    assert isinstance(fitted.model, type(model))
    assert sum(p.numel() for p in fitted.model.parameters()) == plan.params_after
    assert plan.params_after / plan.params_before <= case.ratio + 0.12
    assert fitted.model(torch.randn(5, 3, 16, 16)).shape == (5, 5)

    fresh = make(case, seed=3)  # the same cut on another checkpoint, traced anew
    apply_(fresh, fitted.plan)
    fresh.load_state_dict(fitted.model.state_dict(), strict=True)
    assert torch.equal(fresh(*inputs), fitted.model(*inputs))


def test_single_precision_is_judged_on_surviving_channels_too() -> None:
    case = next(case for case in EXTRA if case.name == "single_precision")
    model, inputs = make(case), example()
    groups = analyse(model, inputs)
    fitted = fit(model, inputs, groups, lambda g: make_plan(g, pick(g, model, 0.5)), tiers=(1,))
    (check,) = [check for check in fitted.proof.checks if check.name == "masked equivalence"]
    assert check.detail.endswith("in float32, 1 operators on surviving channels")
    assert check.value is not None
    assert check.value < 1e-5


def test_training_of_a_rewritten_graph_moves_weights_and_statistics() -> None:
    case = next(case for case in SUITE if case.name == "optionA_pad")
    model, inputs = make(case), example()
    groups = analyse(model, inputs)
    fitted = fit(model, inputs, groups, lambda g: make_plan(g, pick(g, model, 0.5)), tiers=(4,))
    small = fitted.model.train()
    optimiser = torch.optim.SGD(small.parameters(), 0.1)
    losses = []
    for _ in range(5):
        loss = small(*inputs).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_a_graph_traced_on_one_image_runs_on_several() -> None:
    case = next(case for case in EXTRA if case.name == "rows_of_all_images")
    model, inputs = make(case), (torch.randn(1, 3, 16, 16),)
    groups = analyse(model, inputs)
    plan = make_plan(groups, pick(groups, model, 0.5))
    fitted = fit(model, inputs, groups, lambda _: plan, tiers=(4,))
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        one_by_one = torch.cat([fitted.model(image[None]) for image in images])
        torch.testing.assert_close(fitted.model(images), one_by_one)


@pytest.mark.parametrize("name", ["grouped", "grouped_transposed"])
def test_groups_cut_to_one_channel_each_stay_groups(name: str) -> None:
    """Such a convolution looks like a depthwise one, where the channels of both sides go together."""
    model, inputs = make(next(case for case in SUITE if case.name == name)), example()
    groups = analyse(model, inputs)
    read = next(place for place, group in enumerate(groups.groups) if ("c1.weight", 1) in _members(group))
    for others in ({}, {1 - read: [0, 1]}):
        plan = make_plan(groups, {read: list(range(1, groups.groups[read].units)), **others})
        fitted = fit(model, inputs, groups, lambda _, plan=plan: plan, tiers=(1,))
        assert fitted.proof.passed
        assert fitted.model.c1.weight.shape[1] == 1
        assert fitted.model.c1.groups == 4


def _members(group: Group) -> set[tuple[str, int]]:
    return {(member.tensor, member.dim) for member in group.members}


def test_a_rewritten_graph_refuses_sizes_it_was_not_traced_for() -> None:
    """The code divides by the number of positions, which the graph holds as a number."""
    case = next(case for case in EXTRA if case.name == "rows_of_all_images")
    model, inputs = make(case), example()
    plan = make_plan(groups := analyse(model, inputs), pick(groups, model, 0.5))
    fitted = fit(model, inputs, groups, lambda _: plan, tiers=(4,))
    assert "inputs of 3 x 16 x 16 only" in fitted.plan.warnings[0]
    with pytest.raises(ValueError, match="traced for inputs of any x 3 x 16 x 16, not of 2 x 3 x 32 x 32"):
        fitted.model(torch.randn(2, 3, 32, 32))


def test_a_rewritten_graph_makes_tensors_where_its_weights_are() -> None:
    case = next(case for case in EXTRA if case.name == "rows_of_all_images")  # its grid comes from arange
    model, inputs = make(case), example()
    plan = make_plan(groups := analyse(model, inputs), pick(groups, model, 0.5))
    small = fit(model, inputs, groups, lambda _: plan, tiers=(4,)).model.to("meta")
    assert small(torch.empty(2, 3, 16, 16, device="meta")).device.type == "meta"


class Diagonal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)
        self.table = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc((self.conv(x).relu() * self.table.diagonal()[:, None, None]).mean((2, 3)))


def test_both_dims_of_a_diagonal_stay() -> None:
    groups = analyse(Diagonal().eval(), example())
    assert not [member for group in groups.groups for member in group.members if member.tensor == "table"]


class TrainOnly(nn.Module):
    """Its second output, made in train mode only, holds the width as a number."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.mean = mean
        self.c1, self.c2 = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> object:
        y = self.c1(x).relu()
        out = self.c2(y if self.mean else self.drop(y)).mean((2, 3))
        half = y[:, :16].mean(1) if self.mean else y[:, :16].sum(1)
        return (out, half) if self.training else out


@pytest.mark.parametrize("mean", [False, True])
def test_outputs_of_the_train_forward_are_compared_too(mean: bool) -> None:
    torch.manual_seed(0)
    model = TrainOnly(mean).eval()
    groups = analyse(model, example())
    plan = make_plan(groups, {0: list(range(8))})
    with pytest.raises(SurgeryFailed, match="masked train forward"):
        fit(model, example(), groups, lambda _: plan, tiers=(1,))
    model = Outputs().eval()
    groups = analyse(model, example())
    plan = make_plan(groups, {0: [0, 1]})
    proved = {check.name: check for check in fit(model, example(), groups, lambda _: plan, tiers=(1,)).proof.checks}
    assert proved["masked train forward"].value is not None
