"""Labels, groups, exact costs, surgery and masks of channel pruning."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pruners.channels import (
    BadChannelOptions,
    BadChannelsPlan,
    ChannelsMismatch,
    ChannelsPlan,
    CostModel,
    ProofFailed,
    SurgeryFailed,
    analyse,
    apply_,
    fit,
    make_plan,
    masked,
    prove,
    restructure_,
)
from pruners.channels.labels import RESERVED, Labels, Reason
from pruners.channels.plan_type import from_runs, to_runs
from pruners.errors import NoMatch
from tests.pruners.channels.channel_nets import SUITE
from tests.pruners.channels.net_parts import Case, example, make
from tests.pruners.channels.picking import pick

CASES = {case.name: case for case in SUITE}


def net(name: str) -> nn.Module:
    return make(CASES[name])


def counted_macs(model: nn.Module, *inputs: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(*inputs)
    return int(counter.get_total_flops()) // 2


def test_labels_keep_the_first_reason_and_the_smallest_root() -> None:
    labels = Labels()
    ids = labels.fresh(6)
    labels.unite(ids[:3], ids[3:])
    assert labels.find(ids).tolist() == [*ids[:3].tolist(), *ids[:3].tolist()]
    labels.freeze(ids[4:5], Reason("first"))
    labels.freeze(ids[[1, 2]], Reason("second"))
    assert labels.is_frozen(ids).tolist() == [False, True, True, False, True, True]
    assert [labels.reason(int(root)).text for root in labels.find(ids[[1, 2]])] == ["first", "second"]
    assert (labels.find(ids[[0, 3]]) >= RESERVED).all()


def test_chain_of_two_convolutions() -> None:
    groups = analyse(net("chain"), example())
    assert [(g.name, g.units) for g in groups.groups] == [("c0", 16), ("c1", 24)]
    first = {(m.tensor, m.dim) for m in groups.groups[0].members}
    vectors = {(f"bn.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")}
    assert first == {("c0.weight", 0), ("c0.bias", 0), ("c1.weight", 1)} | vectors
    assert all(m.index[:, 0].tolist() == list(range(16)) for m in groups.groups[0].members)
    frozen = {(item.tensor, item.dim): item.reason.text for item in groups.frozen}
    assert frozen == {
        ("c0.weight", 1): "an input without channels to follow",
        ("fc.weight", 0): "output of the model",
        ("fc.bias", 0): "output of the model",
    }


def test_flatten_gives_each_unit_all_of_its_positions() -> None:
    groups = analyse(net("flatten_linear"), example())
    member = next(m for m in groups.by_name()["c0"].members if m.tensor == "mid.weight")
    assert (member.dim, member.index.shape) == (1, (16, 256))
    assert member.index[3].tolist() == list(range(768, 1024))


def test_fused_attention_unit_owns_three_rows_per_head() -> None:
    groups = analyse(net("attn_qkv_flexible"), example())
    member = next(m for g in groups.groups for m in g.members if m.tensor == "qkv.weight" and m.dim == 0)
    assert member.index.shape == (8, 12)
    assert member.index[5].tolist() == list(range(5, 96, 8))


def test_ignored_and_asked_layers() -> None:
    everything = analyse(net("chain"), example())
    assert [g.name for g in analyse(net("chain"), example(), ignore=["c1"]).groups] == []
    assert [g.name for g in analyse(net("chain"), example(), only=["c1"]).groups] == ["c1"]
    assert [g.name for g in analyse(net("chain"), example(), ignore=["fc"]).groups] == ["c0"]
    assert len(everything.groups) == 2
    with pytest.raises(NoMatch, match="c9"):
        analyse(net("chain"), example(), ignore=["c9"])


def test_resnet18_dense_cost_is_the_published_one() -> None:
    cost = CostModel(analyse(torchvision.models.resnet18(), (torch.zeros(1, 3, 128, 128),)))
    assert (cost.macs, cost.params) == (592_695_296, 11_689_512)


@pytest.mark.parametrize("name", ["chain", "residual", "grouped", "depthwise", "attn_qkv_flexible", "transposed"])
def test_predicted_cost_is_the_counted_one(name: str) -> None:
    model, inputs = net(name), example()
    groups = analyse(model, inputs)
    assert CostModel(groups).macs == counted_macs(model, *inputs)
    plan = make_plan(groups, pick(groups, model, 0.5))
    small = copy.deepcopy(model)
    apply_(small, plan)
    assert plan.macs_after == counted_macs(small, *inputs)
    assert plan.params_after == sum(p.numel() for p in small.parameters())


def test_fused_attention_costs_both_products() -> None:
    fused = CostModel(analyse(net("attn_separate_fused"), example())).macs
    plain = CostModel(analyse(net("attn_separate_fixed"), example())).macs
    products = 2 * 4 * 16 * 16 * (8 + 8)  # batch * heads * queries * keys * (width of q + width of v)
    assert fused == plain == 2 * (16 * 32 * 48 + 4 * 16 * 32 * 32 + 32 * 5) + products


def test_cost_of_units_is_exact_in_any_order() -> None:
    model, inputs = net("residual"), example()
    groups = analyse(model, inputs)
    cost = CostModel(groups)
    units = [(place, unit) for place, group in enumerate(groups.groups) for unit in range(group.units - 1)]
    order = np.random.default_rng(0).permutation(len(units))
    for place in order[:20]:
        promised = cost.saving(*units[place])
        before = (cost.params, cost.macs)
        assert cost.remove(*units[place]) == promised
        assert (before[0] - cost.params, before[1] - cost.macs) == (promised.params, promised.macs)
    for place in order[:20]:
        cost.restore(*units[place])
    assert (cost.params, cost.macs) == (cost.dense_params, cost.dense_macs)


def test_attributes_of_modules_follow() -> None:
    model = net("depthwise")
    groups = analyse(model, example())
    apply_(model, make_plan(groups, {"c0": [1, 2, 5]}))
    assert (model.c0.out_channels, model.c1.in_channels, model.c1.out_channels, model.c1.groups) == (13, 13, 13, 13)
    assert model.c2.in_channels == 13
    model = net("groupnorm")
    groups = analyse(model, example())
    apply_(model, make_plan(groups, {0: [1]}))
    assert (model.gn.num_channels, model.c0.out_channels, model.c1.in_channels) == (24, 24, 24)


def test_shared_weights_stay_one_parameter() -> None:
    model = net("shared_weight")
    groups = analyse(model, example())
    apply_(model, make_plan(groups, pick(groups, model, 0.5)))
    assert model.c1.weight is model.c2.weight
    assert model.c1.weight.shape[0] < 16


def test_gradients_flags_and_memory_format_stay() -> None:
    model = net("chain").to(memory_format=torch.channels_last)
    model.c0.weight.requires_grad_(False)
    groups = analyse(model, example())
    apply_(model, make_plan(groups, pick(groups, model, 0.5)))
    assert not model.c0.weight.requires_grad
    assert model.c1.weight.requires_grad
    assert model.c1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("keep", [96, 192, 300, 384])
def test_layernorm_keeps_indices_ascending(keep: int) -> None:
    model = net("layernorm_heavy")
    groups = analyse(model, example())
    width = groups.by_name()["patch"]
    gone = torch.randperm(768, generator=torch.Generator().manual_seed(keep))[keep:].tolist()
    plan = make_plan(groups, {width.name: gone})
    kept = plan.keep["ln.weight"][0]
    assert list(kept) == sorted(set(range(768)) - set(gone))
    expected = model.ln.weight.detach()[list(kept)].clone()
    apply_(model, plan)
    assert torch.equal(model.ln.weight, expected)


def test_masks_zero_both_sides_and_come_off_after_an_error() -> None:
    model = net("chain")
    before = copy.deepcopy(model.state_dict())
    groups = analyse(model, example())
    plan = make_plan(groups, {"c0": [0, 7]})
    with masked(model, plan):
        assert torch.count_nonzero(model.c0.weight[[0, 7]]) == 0
        assert torch.count_nonzero(model.c1.weight[:, [0, 7]]) == 0
        assert torch.count_nonzero(model.bn.running_var) == 14
    with pytest.raises(KeyError), masked(model, plan):
        raise KeyError
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_plan_goes_through_json_and_rebuilds_a_fresh_model() -> None:
    model, inputs = net("residual"), example()
    groups = analyse(model, inputs)
    plan = make_plan(groups, pick(groups, model, 0.5), {"score": "magnitude"})
    document = json.loads(json.dumps(plan.to_dict()))
    assert ChannelsPlan.from_dict(document) == plan
    small, fresh = copy.deepcopy(model), make(CASES["residual"], seed=5)
    apply_(small, plan)
    restructure_(fresh, document)
    fresh.load_state_dict(small.state_dict(), strict=True)
    assert torch.equal(fresh(*inputs), small(*inputs))
    assert any("->" in line for line in plan.explain())


def test_plans_refuse_other_models_and_change_nothing() -> None:
    groups = analyse(net("chain"), example())
    plan = make_plan(groups, {"c0": [0]})
    other = net("residual")
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ChannelsMismatch, match=r"bn\.weight"):
        apply_(other, plan)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    once = net("chain")
    apply_(once, plan)
    with pytest.raises(ChannelsMismatch, match="shape"):
        apply_(once, plan)


def test_bad_documents_and_units_are_refused() -> None:
    with pytest.raises(BadChannelsPlan, match="method"):
        ChannelsPlan.from_dict({"method": "magnitude"})
    with pytest.raises(BadChannelsPlan, match="fingerprint"):
        ChannelsPlan.from_dict({"method": "channels", "format": 1, "keep": {}})
    groups = analyse(net("chain"), example())
    with pytest.raises(BadChannelOptions, match="nothere"):
        make_plan(groups, {"nothere": [0]})
    with pytest.raises(BadChannelOptions, match="16 channels"):
        make_plan(groups, {"c0": [16]})


def test_a_wrong_cut_fails_the_proof() -> None:
    model, inputs = net("chain"), example()
    groups = analyse(model, inputs)
    plan = make_plan(groups, {"c0": [0, 1]})
    small = copy.deepcopy(model)
    apply_(small, plan)
    with torch.no_grad():
        small.c1.weight.copy_(small.c1.weight.roll(1, 1))
    with pytest.raises(ProofFailed, match="masked equivalence"):
        prove(model, small, plan, inputs, groups=groups).require()


def test_analysis_leaves_no_trace_on_the_model() -> None:
    model = net("chain")
    model.c0.train()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    analyse(model, example())
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert model.c0.training
    assert not model.c1.training


@pytest.mark.parametrize(("indices", "text"), [([], ""), ([0, 1, 2, 5], "0-2 5"), ([3], "3"), ([1, 3, 4], "1 3-4")])
def test_runs(indices: list[int], text: str) -> None:
    assert to_runs(indices) == text
    assert list(from_runs(text)) == indices


def test_case_names_are_unique() -> None:
    names = [case.name for case in (*SUITE,) if isinstance(case, Case)]
    assert len(names) == len(set(names)) == 48


class PaddedShortcut(nn.Module):
    """A shortcut without weights, whose widths are numbers in the code (CIFAR ResNets, option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        short = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        linear: torch.Tensor = self.head((self.down(x) + short).relu().mean((2, 3)))
        return linear


def test_a_plan_without_proof_is_refused_where_the_code_does_not_bear_it() -> None:
    torch.manual_seed(0)
    model, inputs = PaddedShortcut().eval(), (torch.randn(2, 3, 8, 8),)
    before = model(*inputs)
    groups = analyse(model, inputs)
    plan = make_plan(groups, {group.name: range(group.units // 2) for group in groups.groups})
    assert not plan.proved
    with pytest.raises(SurgeryFailed, match="fit finds a way"):
        apply_(model, plan)
    assert torch.equal(model(*inputs), before)
    fitted = fit(model, inputs, groups, lambda found: plan if found is groups else make_plan(found, {}))
    assert fitted.plan.proved
    assert ChannelsPlan.from_dict(fitted.plan.to_dict()).proved
    apply_(model, fitted.plan)
    assert torch.equal(model(*inputs), fitted.model(*inputs))


def test_a_cumulative_batch_norm_is_traced_in_train_mode_too(capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    groups = analyse(model, (torch.randn(2, 3, 8, 8),))
    assert [trace.mode for trace in groups.traces] == ["eval", "train"]
    assert model[1].momentum is None
    assert capfd.readouterr() == ("", "")
