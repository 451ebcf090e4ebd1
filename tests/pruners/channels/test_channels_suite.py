"""Every pattern of specs/channels.md section 5.3: cut half of the units and prove it, or be told that it failed."""

from __future__ import annotations

import copy

import pytest
import torch

from pruners.channels import analyse, apply_, make_plan, prove
from tests.pruners.channels.channel_nets import EXTRA, SUITE, Case, example, make
from tests.pruners.channels.picking import pick

SIZES_IN_CODE = {
    "linear_view_conv", "channel_slice", "split_uneven", "shuffle_hardcoded", "optionA_pad", "layer_scale_fixed_shape",
    "gram_matrix", "attn_qkv_fixed", "attn_separate_fixed", "mha", "shift_into_zeros", "slice_write", "alias_add",
}  # fmt: skip
"""Their forward holds sizes as numbers: cutting tensors alone cannot be right."""

BETTER = {"l2_normalize": 0.35, "glu": 0.40, "grouped_transposed": 0.40, "einsum_proj": 0.50}
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
    assert plan.params_after / plan.params_before <= BETTER.get(case.name, case.ratio) + 0.12
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("case", [c for c in SUITE + EXTRA if c.name in SIZES_IN_CODE], ids=lambda c: c.name)
def test_sizes_in_code_never_pass_silently(case: Case) -> None:
    model, inputs = make(case), example()
    groups = analyse(model, inputs)
    plan = make_plan(groups, pick(groups, model, 1 - case.keep))
    small = copy.deepcopy(model)
    apply_(small, plan)
    assert not prove(model, small, plan, inputs, groups=groups).passed
