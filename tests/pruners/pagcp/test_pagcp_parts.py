"""Scores, masks, prefix cache and losses, each against a slower way of saying the same."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruners.channels import BadChannelOptions, Groups, analyse, make_plan, masked
from pruners.channels.masker import Masker
from pruners.pagcp import (
    PagcpOptions,
    TaskData,
    constant_floors,
    evaluate,
    fisher_scores,
    l1_scores,
    make_oracle,
    make_path,
    plan,
    reestimate_batchnorm_,
    worst_task,
)
from pruners.pagcp.options import floor_of, most_removed
from pruners.pagcp.tasks import rise
from tests.pruners.pagcp.pagcp_nets import TwoHeads, two_head_data, two_heads

EXAMPLE = (torch.zeros(2, 1, 6, 6),)


@pytest.fixture(scope="module")
def net() -> TwoHeads:
    return two_heads()


@pytest.fixture(scope="module")
def groups(net: nn.Module) -> Groups:
    return analyse(net, EXAMPLE)


class Gated(nn.Module):
    """The two-head network with a factor on every channel, written out by hand."""

    def __init__(self, net: TwoHeads) -> None:
        super().__init__()
        self.net = net
        self.gates = {
            "stem": torch.ones(6, requires_grad=True),
            "inner": torch.ones(6, requires_grad=True),
            "hidden": torch.ones(5, requires_grad=True),
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        net, trunk = self.net, self.gates["stem"][None, :, None, None]
        x = F.relu(net.bn1(net.stem(x)))
        y = net.back(self.gates["inner"][None, :, None, None] * F.relu(net.bn2(net.inner(trunk * x))))
        z = trunk * F.relu(y + x)
        return {
            "label": net.label(self.gates["hidden"] * F.relu(net.hidden(z.mean((2, 3))))),
            "map": net.map(z),
        }


def test_fisher_is_the_squared_gate_gradient_sample_by_sample(net: TwoHeads, groups: Groups) -> None:
    data = two_head_data(net, samples=12, batch=6, missing=2)
    found = fisher_scores(net, groups, data)
    gated = Gated(copy.deepcopy(net))
    names = [group.name for group in groups.groups]
    expected = {task: [torch.zeros(group.units, dtype=torch.float64) for group in groups.groups] for task in found}
    judged = evaluate(data, net)
    means = {task: float(values.nanmean() * (~values.isnan()).double().mean()) for task, values in judged.items()}
    for x, target in data.batches:
        for sample in range(len(x)):
            batch = (x[sample : sample + 1], {name: value[sample : sample + 1] for name, value in target.items()})
            for task, values in data.losses(gated(batch[0]), batch).items():
                if not bool(values.isnan()):
                    gradients = torch.autograd.grad(
                        values.sum(), [gated.gates[name] for name in names], allow_unused=True, retain_graph=True
                    )
                    for total, gradient in zip(expected[task], gradients, strict=True):
                        total += 0 if gradient is None else gradient.double().square() / means[task]
    for task, tables in expected.items():
        for wanted, got in zip(tables, found[task], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-7)
    assert float(found["map"][names.index("hidden")].abs().sum()) == 0.0
    worst = worst_task(found)
    assert all(bool((w >= t).all()) for tables in found.values() for w, t in zip(worst, tables, strict=True))


def test_probes_score_where_the_losses_vanish(net: TwoHeads, groups: Groups) -> None:
    made = two_head_data(net, samples=12, batch=6)
    with torch.no_grad():
        wanted = {id(batch): net(batch[0])["label"] for batch in made.batches}
    teacher = TaskData(made.batches, made.forward, lambda y, b: {"label": (y["label"] - wanted[id(b)]).square().sum(1)})
    assert all(float(table.sum()) == 0 for table in fisher_scores(net, groups, teacher)["label"])
    probed = dataclasses.replace(teacher, probes=lambda y, b: {"label": y["label"].sum(1)})
    assert all(float(table.sum()) > 0 for table in fisher_scores(net, groups, probed)["label"])


def test_missing_targets_do_not_make_a_task_count_less(net: TwoHeads, groups: Groups) -> None:
    """Twice the samples, the second half without a target for one task: its scores stay what they were."""
    data = two_head_data(net)
    empty = [(x, {**target, "map": torch.full_like(target["map"], -1)}) for x, target in data.batches]
    wider = dataclasses.replace(data, batches=[*data.batches, *empty])
    once, twice = (fisher_scores(net, groups, each) for each in (data, wider))
    for task in once:
        for left, right in zip(once[task], twice[task], strict=True):
            torch.testing.assert_close(2 * left, right)


def test_l1_adds_the_mean_size_of_all_producers(net: TwoHeads, groups: Groups) -> None:
    table = dict(zip((group.name for group in groups.groups), l1_scores(net, groups), strict=True))
    expected = net.stem.weight.detach().abs().mean((1, 2, 3)) + net.back.weight.detach().abs().mean((1, 2, 3))
    torch.testing.assert_close(table["stem"], expected.double())
    torch.testing.assert_close(table["hidden"], net.hidden.weight.detach().abs().mean(1).double())


def test_masks_are_those_of_the_channels_library_and_come_off_exactly(net: TwoHeads, groups: Groups) -> None:
    working = copy.deepcopy(net)
    before = {name: value.clone() for name, value in working.state_dict().items()}
    masker = Masker(working, groups)
    removal = {0: [1, 4], 2: [0]}
    with masker.without(removal):
        mine = {name: value.clone() for name, value in working.state_dict().items()}
    with masked(copy.deepcopy(net), make_plan(groups, removal)) as theirs:
        assert all(torch.equal(mine[name], value) for name, value in theirs.state_dict().items())
    assert all(torch.equal(before[name], value) for name, value in working.state_dict().items())
    masker.switch_off(removal)
    masker.switch_off({0: [2]})
    assert masker.gone == {0: (1, 2, 4), 2: (0,)}
    masker.reset({})
    assert all(torch.equal(before[name], value) for name, value in working.state_dict().items())


@pytest.mark.parametrize("statistics", [True, False])
def test_cached_prefixes_give_the_same_losses_bit_for_bit(net: TwoHeads, groups: Groups, statistics: bool) -> None:
    data = two_head_data(net)
    options = PagcpOptions(target=1, batch_statistics=statistics)
    cached = make_oracle(net, groups, data, options, EXAMPLE)
    plain = make_oracle(net, groups, data, dataclasses.replace(options, cache_bytes=0), EXAMPLE)
    names = [group.name for group in groups.groups]
    hidden, inner = names.index("hidden"), names.index("inner")
    for oracle in (cached, plain):
        oracle.losses({hidden: [0]})
        oracle.commit({inner: [3]})
    for removal in ({hidden: [0, 1]}, {inner: [0, 1]}, {hidden: [2]}, {}):
        left, right = cached.losses(removal), plain.losses(removal)
        assert all(torch.equal(left[task], right[task]) for task in left)
    assert cached.forwards < 0.7 * plain.forwards
    assert plain.forwards == pytest.approx(plain.effort.calls)
    buffers = dict(net.named_buffers())
    running = {name: value for name, value in cached.model.named_buffers() if name.startswith("bn1.running")}
    assert running
    assert all(torch.equal(value, buffers[name]) for name, value in running.items())


def test_the_cache_gives_up_where_the_order_of_calls_depends_on_the_data() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            first, second = (self.a, self.b) if torch.compiler.is_compiling() or x.sum() >= 0 else (self.b, self.a)
            return self.c(second(first(x)))

    torch.manual_seed(0)
    moody = Moody()
    batches = [torch.ones(4, 3), -torch.ones(4, 3)]
    data = TaskData(batches, lambda model, x: model(x), lambda y, x: {"t": y.square().sum(1)})
    found = analyse(nn.Sequential(moody.a, moody.b, moody.c), (torch.ones(2, 3),))
    renamed = {"0": "a", "1": "b", "2": "c"}
    assert found.groups
    sequential = nn.Sequential(*(getattr(moody, renamed[str(place)]) for place in range(3)))
    oracle = make_oracle(sequential, found, data, PagcpOptions(target=1), (torch.ones(2, 3),))
    oracle.replay.order = ["1", "0", "2"]  # as if the first run had gone the other way
    expected = evaluate(data, sequential)["t"]
    torch.testing.assert_close(oracle.losses()["t"], expected)
    assert oracle.replay.enabled is False


def test_reestimated_statistics_are_the_batches_averages(net: TwoHeads) -> None:
    data = two_head_data(net)
    working = copy.deepcopy(net)
    reestimate_batchnorm_(working, data)
    with torch.no_grad():
        means = [working.stem(batch[0]).mean((0, 2, 3)) for batch in data.batches]
    torch.testing.assert_close(working.bn1.running_mean, torch.stack(means).mean(0))
    assert not any(module.training for module in working.modules())
    assert working.bn1.momentum == net.bn1.momentum


def test_floors_are_a_share_of_the_constant_predictors_loss(net: TwoHeads) -> None:
    data = two_head_data(net)
    floors = constant_floors(data, net, share=0.05)
    x = torch.cat([batch[0] for batch in data.batches])
    labels = torch.cat([batch[1]["label"] for batch in data.batches])
    with torch.no_grad():
        constant = net(x)["label"].mean(0, keepdim=True).expand(len(x), 3)
    assert floors["label"] == pytest.approx(0.05 * float(F.cross_entropy(constant, labels)), rel=1e-5)


def test_relative_rises_at_the_edges() -> None:
    assert rise(0.0, 0.0, 0.0) == 0.0
    assert rise(1e-9, 0.0, 0.0) == float("inf")
    assert rise(0.02, 0.0, 0.04) == pytest.approx(0.5)
    assert rise(1.03, 1.0, 0.0) == pytest.approx(0.03)
    assert rise(float("nan"), 1.0, 0.0) == float("inf")


def test_path_costs_are_those_of_plans(net: TwoHeads, groups: Groups) -> None:
    for multiple, least in ((1, "5%"), (2, "1"), (4, "3")):
        options = PagcpOptions(target=1, round_to=multiple, min_channels=least)
        path = make_path(groups, l1_scores(net, groups), options)
        for position in range(len(path.order) + 1):
            assert path.costs[position] == make_plan(groups, path.removal(position)).macs_after
        assert list(path.costs) == sorted(path.costs, reverse=True)
        position = path.first_within(path.costs[len(path.order) // 2])
        assert position is not None
        assert path.costs[position] <= path.costs[len(path.order) // 2]
        assert position == 0 or path.costs[position - 1] > path.costs[len(path.order) // 2]


@pytest.mark.parametrize(
    ("channels", "wanted", "least", "multiple", "goes"),
    [(20, 7, 1, 8, 4), (20, 3, 1, 8, 0), (64, 40, 4, 8, 40), (64, 63, 4, 8, 56), (10, 10, 1, 1, 9), (10, 9, 4, 1, 6)],
)
def test_rounding_keeps_more_never_less(channels: int, wanted: int, least: int, multiple: int, goes: int) -> None:
    assert most_removed(channels, wanted, least, multiple) == goes


@pytest.mark.parametrize(
    ("text", "channels", "least"), [("5%", 64, 4), ("5%", 10, 1), ("0", 8, 1), ("12", 8, 8), ("50%", 7, 4)]
)
def test_floors_of_channels(text: str, channels: int, least: int) -> None:
    assert floor_of(text, channels) == least


def test_a_held_out_part_without_targets_for_a_task_is_not_judged_by(net: nn.Module, groups: Groups) -> None:
    made = two_head_data(net)
    data = dataclasses.replace(made, floors=constant_floors(made, net))
    unmapped = two_head_data(net, samples=24, seed=5, missing=24)
    options = PagcpOptions(max_rise={"map": 0.1}, probe=0)
    found = plan(net, EXAMPLE, dataclasses.replace(data, held_out=unmapped.batches), options, groups=groups)
    assert (found.record.check.held_out, found.record.check.samples) == (False, 96)
    unmapped = two_head_data(net, samples=24, missing=24)
    searched = dataclasses.replace(unmapped, floors=data.floors, held_out=data.batches)
    with pytest.raises(BadChannelOptions, match="no calibration sample has a target for the task 'map'"):
        plan(net, EXAMPLE, searched, options, groups=groups)
