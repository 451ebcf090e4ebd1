"""Both searches against brute force with real surgery, and the identities that they must keep."""

from __future__ import annotations

import copy
import dataclasses
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from pruners.channels import (
    BadChannelOptions,
    CostModel,
    Groups,
    InfeasibleBudget,
    analyse,
    apply_,
    make_plan,
    prove,
)
from pruners.pagcp import (
    PagcpOptions,
    TaskData,
    constant_floors,
    decay_of,
    evaluate,
    final_check,
    make_oracle,
    plan,
    reference,
)
from pruners.pagcp.oracle import reestimate_batchnorm_
from pruners.pagcp.tasks import rises
from tests.pruners.pagcp.pagcp_nets import Parallel, parallel_data, two_head_data, two_heads

EXAMPLE = (torch.zeros(2, 1, 6, 6),)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return two_heads()


@pytest.fixture(scope="module")
def groups(net: nn.Module) -> Groups:
    return analyse(net, EXAMPLE)


@pytest.fixture(scope="module")
def data(net: nn.Module) -> TaskData:
    made = two_head_data(net)
    return dataclasses.replace(made, floors=constant_floors(made, net))


def cut(net: nn.Module, groups: Groups, removed: dict[int, list[int]]) -> nn.Module:
    small = copy.deepcopy(net)
    if any(removed.values()):
        apply_(small, make_plan(groups, removed))
    return small


def total(losses: dict[str, Tensor]) -> dict[str, float]:
    return {task: float(values.nanmean()) for task, values in losses.items()}


def choices(found: object) -> list[tuple[int, ...]]:
    return [item.removed for item in found.plan.groups]  # type: ignore[attr-defined]


def test_the_path_is_the_cheapest_of_all_subsets_where_harm_adds_up() -> None:
    parallel = Parallel((0.9, 0.3, 1.4, 0.2, 0.7, 0.5))
    example = (torch.zeros(2, 1),)
    judged = parallel_data(parallel)
    found_groups = analyse(parallel, example)
    bound = 12.0
    base = total(evaluate(judged, parallel))["mse"]
    best: tuple[int, ...] = ()
    for count in range(6):
        for chosen in combinations(range(6), count):
            loss = total(evaluate(judged, cut(parallel, found_groups, {0: list(chosen)})))["mse"]
            if loss <= (1 + bound) * base and len(chosen) > len(best):
                best = chosen
    assert 1 < len(best) < 5
    found = plan(parallel, example, judged, PagcpOptions(max_rise={"mse": bound}, z=None), groups=found_groups)
    assert choices(found) == [best]
    assert found.record.check.holds is True
    assert found.record.check.rises["mse"] <= bound


def naive_reference(net: nn.Module, groups: Groups, data: TaskData, bound: float, first: float) -> dict[int, list[int]]:
    """The published walk written down once more: real surgery for every candidate, no masks, no cache."""
    cost = CostModel(groups)
    decay = decay_of(first, 1 + bound, len(groups.groups))
    scores = []
    for group in groups.groups:
        total_size = torch.zeros(group.units)
        for member in group.members:
            tensor = net.get_parameter(member.tensor) if "running" not in member.tensor else None
            if tensor is not None and tensor.dim() > 1 and member.dim == 0:
                sizes = tensor.detach().abs().flatten(1).mean(1)
                total_size += torch.stack([sizes[row].sum() for row in torch.from_numpy(member.index)])
        scores.append(total_size.argsort(stable=True).tolist())
    savings = []
    for place, group in enumerate(groups.groups):
        probe = scores[place][: int(0.3 * group.units)]
        before = cost.macs
        cost.remove_all((place, unit) for unit in probe)
        savings.append(before - cost.macs)
        for unit in probe:
            cost.restore(place, unit)
    order = sorted(range(len(savings)), key=lambda place: (-savings[place] if decay <= 1 else savings[place], place))
    ref, gone, threshold = total(evaluate(data, net)), {place: [] for place in order}, first
    for place in order:
        accepted, after = 0, ref
        units = groups.groups[place].units
        for count in sorted({int(step / 20 * units + 1e-9) for step in range(1, 20)} - {0}):
            losses = total(evaluate(data, cut(net, groups, {**gone, place: scores[place][:count]})))
            rise = max((losses[t] + data.floors[t]) / (ref[t] + data.floors[t]) for t in ref)
            if rise > 1 + threshold:
                break
            accepted, after = count, losses
        if accepted:
            gone[place] = sorted(scores[place][:accepted])
            ref = {task: max(ref[task], after[task]) for task in ref}
            threshold *= decay
    return gone


@pytest.mark.parametrize(("bound", "first"), [(0.2, 0.05), (0.6, 0.05), (0.6, 0.3)])
def test_the_sweep_decides_as_a_walk_with_real_surgery(
    net: nn.Module, groups: Groups, data: TaskData, bound: float, first: float
) -> None:
    options = reference(max_rise={"label": bound, "map": bound}, first_rise=first, top=1.0, min_channels="1", probe=0)
    expected = naive_reference(net, groups, data, bound, first)
    found = plan(net, EXAMPLE, data, options, groups=groups)
    assert found.record.check.backed_off == 0
    assert choices(found) == [tuple(expected[place]) for place in range(len(groups.groups))]
    assert any(expected.values())


@pytest.mark.parametrize("search", ["path", "sweep"])
def test_cache_and_sequential_test_change_the_cost_and_not_the_decisions(
    net: nn.Module, groups: Groups, search: str
) -> None:
    judged = two_head_data(net, samples=320, batch=20)
    judged = dataclasses.replace(judged, floors=constant_floors(judged, net))
    plain = PagcpOptions(
        max_rise={"label": 0.3, "map": 0.2}, search=search, z=None, cache_bytes=0, probe=0, batch_statistics=False
    )
    every = plan(net, EXAMPLE, judged, plain, groups=groups)
    cached = plan(net, EXAMPLE, judged, dataclasses.replace(plain, cache_bytes=1 << 28), groups=groups)
    early = plan(net, EXAMPLE, judged, dataclasses.replace(plain, cache_bytes=1 << 28, z=3.0), groups=groups)
    assert choices(every) == choices(cached) == choices(early)
    assert [step.rises for step in cached.record.steps] == [step.rises for step in every.record.steps]
    assert early.record.full_forwards < every.record.full_forwards
    assert early.record.early > 0
    assert early.record.test_errors == 0
    if search == "sweep":
        assert cached.record.full_forwards < every.record.full_forwards
    assert every.record.full_forwards == pytest.approx(every.record.calls)


@pytest.mark.parametrize("search", ["path", "sweep"])
def test_no_rise_allowed_means_nothing_goes(net: nn.Module, groups: Groups, search: str) -> None:
    """Judged by distance to its own outputs every removal is a rise, whatever the others may do."""
    made = two_head_data(net)
    with torch.no_grad():
        wanted = {id(batch): net(batch[0])["label"] for batch in made.batches}
    teacher = TaskData(
        made.batches, made.forward, lambda y, b: {"label": (y["label"] - wanted[id(b)]).square().mean(1)}
    )
    options = PagcpOptions(max_rise={"label": 0.0}, search=search, batch_statistics=False)
    found = plan(net, EXAMPLE, teacher, options, groups=groups)
    assert found.plan.units_removed == 0
    assert found.record.found == found.record.dense
    assert found.record.check.rises == {"label": 0.0}


def test_a_group_that_passes_every_count_is_cut_to_its_floor(net: nn.Module, groups: Groups) -> None:
    made = two_head_data(net)
    blind = TaskData(made.batches, made.forward, lambda y, b: {"none": torch.ones(len(b[0]))})
    options = reference(max_rise={"none": 0.5}, top=1.0, min_channels="2")
    found = plan(net, EXAMPLE, blind, options, groups=groups)
    assert [len(item.kept) for item in found.plan.groups] == [2] * len(groups.groups)
    assert found.record.decay is not None
    first = 0.05
    allowed = [step.bounds["none"] for step in found.record.steps]
    assert allowed == pytest.approx([first * found.record.decay**place for place in range(len(allowed))])


def test_the_walk_begins_with_the_costliest_group_unless_tolerances_grow(net: nn.Module, groups: Groups) -> None:
    made = two_head_data(net)
    blind = TaskData(made.batches, made.forward, lambda y, b: {"none": torch.ones(len(b[0]))})
    walks = {}
    for first in (0.2, 0.01):
        options = reference(max_rise={"none": 0.5}, top=1.0, first_rise=first, min_channels="50%", probe=0)
        found = plan(net, EXAMPLE, blind, options, groups=groups)
        walks[first] = (found.record.decay, [step.what for step in found.record.steps])
    assert walks[0.2][0] < 1 < walks[0.01][0]
    assert walks[0.2][1] == walks[0.01][1][::-1]


def test_a_failed_first_count_leaves_tolerance_and_reference(net: nn.Module, groups: Groups) -> None:
    """Two groups that the map depends on fail at once; the third, visited last, still has the first tolerance."""
    made = two_head_data(net)
    with torch.no_grad():
        wanted = {id(batch): net(batch[0])["map"] for batch in made.batches}
    judged = TaskData(
        made.batches,
        made.forward,
        lambda y, b: {
            "map": (y["map"] - wanted[id(b)]).square().mean((1, 2, 3)),
            "none": torch.ones(len(b[0])),
        },
    )
    options = reference(max_rise={"map": 0.0, "none": 0.5}, first_rise=0.2, top=1.0, probe=0, min_channels="1")
    found = plan(net, EXAMPLE, judged, options, groups=groups)
    assert [(step.what, step.bounds) for step in found.record.steps] == [("hidden", {"map": 0.0, "none": 0.2})]
    assert {item.name: len(item.removed) for item in found.plan.groups} == {"stem": 0, "inner": 0, "hidden": 4}
    assert found.record.calls == 1 + 1 + 1 + 4  # the reference, one failure each, the hidden layer's four counts


def test_the_target_is_met_and_not_overshot_by_more_than_one_channel(
    net: nn.Module, groups: Groups, data: TaskData
) -> None:
    dense = CostModel(groups).macs
    for search in ("path", "sweep"):
        options = PagcpOptions(target=int(0.6 * dense), search=search, rounds=20)
        found = plan(net, EXAMPLE, data, options, groups=groups)
        largest = max(CostModel(groups).saving(place, 0).macs for place in range(len(groups.groups)))
        assert int(0.6 * dense) - largest < found.record.found <= int(0.6 * dense)
        assert found.plan.macs_after == found.record.found
        assert found.record.met is True


def test_an_unreachable_target_names_the_least(net: nn.Module, groups: Groups, data: TaskData) -> None:
    for search in ("path", "sweep"):
        options = PagcpOptions(target=10, search=search, min_channels="50%")
        with pytest.raises(InfeasibleBudget) as caught:
            plan(net, EXAMPLE, data, options, groups=groups)
        kept = {place: range(group.units // 2) for place, group in enumerate(groups.groups)}
        assert caught.value.smallest == make_plan(groups, kept).macs_after
        assert caught.value.dense == CostModel(groups).macs


def test_kept_counts_are_rounded_up(net: nn.Module, groups: Groups, data: TaskData) -> None:
    for search in ("path", "sweep"):
        options = PagcpOptions(target=int(0.7 * CostModel(groups).macs), search=search, round_to=2, rounds=20)
        found = plan(net, EXAMPLE, data, options, groups=groups)
        assert found.plan.units_removed > 0
        for item in found.plan.groups:
            assert len(item.kept) % 2 == 0 or len(item.kept) == item.units


def test_the_model_is_untouched_and_the_result_proved(net: nn.Module, groups: Groups, data: TaskData) -> None:
    state = {name: value.clone() for name, value in net.state_dict().items()}
    options = PagcpOptions(max_rise={"label": 0.3, "map": 0.3})
    found = plan(net, EXAMPLE, data, options, groups=groups)
    again = plan(net, EXAMPLE, data, options, groups=groups)
    assert found.plan == again.plan
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in net.modules())
    small = copy.deepcopy(net)
    apply_(small, found.plan)
    assert prove(net, small, found.plan, EXAMPLE, groups=groups).passed
    assert small(EXAMPLE[0])["label"].shape == (2, 3)
    assert found.plan.units_removed > 0


def test_bounds_hold_on_the_cut_model_or_channels_come_back(net: nn.Module, groups: Groups, data: TaskData) -> None:
    """Without re-estimation the cut model's batch norms are off: the check must find out and give back."""
    options = PagcpOptions(max_rise={"label": 0.15, "map": 0.15}, probe=0)
    found = plan(net, EXAMPLE, data, options, groups=groups, recalibrate=lambda small, cut: None)
    small = copy.deepcopy(net)
    if found.plan.units_removed:
        apply_(small, found.plan)
    before, after = total(evaluate(data, net)), total(evaluate(data, small))
    for task, bound in options.max_rise.items():
        assert (after[task] + data.floors[task]) / (before[task] + data.floors[task]) - 1 <= bound
    assert found.record.check.holds is True


def test_the_check_judges_by_what_the_search_did_not_see(net: nn.Module, groups: Groups, data: TaskData) -> None:
    """Inputs twice as large, where the losses rise by 5 % with channels that cost 2 % where they were searched for."""
    made = two_head_data(net, samples=72, seed=4)
    unseen = dataclasses.replace(made, batches=[(2 * x, target) for x, target in made.batches])
    options = PagcpOptions(max_rise={"label": 0.03, "map": 0.03}, probe=0)
    blind = plan(net, EXAMPLE, data, options, groups=groups)
    assert blind.record.check.held_out is False
    assert blind.record.check.samples == blind.record.samples == 96
    found = plan(net, EXAMPLE, dataclasses.replace(data, held_out=unseen.batches), options, groups=groups)
    check = found.record.check
    assert (check.held_out, check.samples, found.record.samples) == (True, 72, 96)
    assert check.before == pytest.approx(total(evaluate(unseen, net)))
    assert check.holds is True
    assert found.record.steps == blind.record.steps  # the search itself saw the same

    def worst(removed: list[tuple[int, ...]]) -> float:
        small = cut(net, groups, {place: list(units) for place, units in enumerate(removed)})
        reestimate_batchnorm_(small, data)
        return max(rises(evaluate(unseen, small), evaluate(unseen, net), data.floors).values())

    assert worst(choices(blind)) > 0.03 >= worst(choices(found))
    assert check.backed_off > 0


def test_final_check_equals_losses_of_the_cut_model(net: nn.Module, groups: Groups, data: TaskData) -> None:
    removal = {0: (1, 2), 1: (0,)}
    options = PagcpOptions(max_rise={"map": 0.01})
    check = final_check(net, groups, removal, data, options, evaluate(data, net))
    assert check.after == pytest.approx(total(evaluate(data, cut(net, groups, {0: [1, 2], 1: [0]}))))
    assert check.holds is (check.rises["map"] <= 0.01)


def test_masked_losses_equal_those_after_surgery(net: nn.Module, groups: Groups, data: TaskData) -> None:
    oracle = make_oracle(net, groups, data, PagcpOptions(target=1, batch_statistics=False), EXAMPLE)
    for place, group in enumerate(groups.groups):
        units = list(range(0, group.units, 2))
        masked = oracle.losses({place: units})
        surgery = evaluate(data, cut(net, groups, {place: units}))
        for task, values in surgery.items():
            torch.testing.assert_close(masked[task], values, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_samples_without_a_target_do_not_count(net: nn.Module, groups: Groups) -> None:
    some = two_head_data(net, missing=30)
    oracle = make_oracle(net, groups, some, PagcpOptions(target=1), EXAMPLE)
    assert int(oracle.reference["map"].isnan().sum()) == 30
    assert oracle.rises(oracle.losses()) == {"label": 0.0, "map": 0.0}
    found = plan(net, EXAMPLE, some, PagcpOptions(max_rise={"map": 0.2, "label": 0.2}), groups=groups)
    assert found.record.check.holds is True
    assert found.plan.units_removed > 0


def test_the_sensitivity_table_names_the_task_that_suffers(net: nn.Module, groups: Groups, data: TaskData) -> None:
    found = plan(net, EXAMPLE, data, PagcpOptions(target=CostModel(groups).macs), groups=groups)
    rows = {row.group: row for row in found.record.sensitivity}
    assert set(rows) == set(groups.by_name())
    assert rows["hidden"].task == "label"
    assert rows["hidden"].rises["map"] == 0.0
    plan_alone = make_plan(groups, {"inner": range(rows["inner"].removed)})
    assert rows["inner"].macs_saved == plan_alone.macs_before - plan_alone.macs_after


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "neither a bound"),
        ({"max_rise": {"a": -0.1}}, "0 or more"),
        ({"target": 1, "search": "walk"}, "search 'walk' is unknown; known: path, sweep"),
        ({"target": 1, "score": "size"}, "known: fisher, l1"),
        ({"target": 1, "top": 0.0}, "above 0"),
        ({"target": 1, "round_to": 0}, "at least 1"),
        ({"target": 1, "min_channels": "many"}, "neither a number"),
        ({"target": 1, "min_channels": "120%"}, "neither a number"),
    ],
)
def test_options_that_make_no_sense_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(BadChannelOptions, match=words):
        PagcpOptions(**values)  # type: ignore[arg-type]


def test_a_bound_for_an_unknown_task_is_refused(net: nn.Module, groups: Groups, data: TaskData) -> None:
    with pytest.raises(BadChannelOptions, match=r"no task 'sgm'; tasks: label, map"):
        plan(net, EXAMPLE, data, PagcpOptions(max_rise={"sgm": 0.1}), groups=groups)


def test_a_cost_target_is_met_although_the_published_tolerances_stall(
    net: nn.Module, groups: Groups, data: TaskData
) -> None:
    target = int(0.3 * CostModel(groups).macs)
    options = reference(target=target, rounds=20, probe=0, min_channels="1", first_rise=1e-3, round_rise=0.1)
    found = plan(net, EXAMPLE, data, options, groups=groups)
    assert found.record.found <= target


def test_measured_scores_find_a_cut_that_holds_and_say_what_they_cost(net: nn.Module, groups: Groups) -> None:
    judged = two_head_data(net, samples=320, batch=20)
    judged = dataclasses.replace(judged, floors=constant_floors(judged, net))
    bounds = {"label": 0.3, "map": 0.2}
    plain = PagcpOptions(bounds, z=None, cache_bytes=0, probe=0, batch_statistics=False)
    found = plan(net, EXAMPLE, judged, dataclasses.replace(plain, measured=True), groups=groups)
    assert found.record.check.holds
    assert all(found.record.check.rises[task] <= bound for task, bound in bounds.items())
    run = 13 / len(judged.batches)  # 260 samples, dense and once for each group that has scores
    assert found.plan.options["score"] == "measured"
    assert 2 * run <= found.record.full_forwards - found.record.calls <= (1 + len(groups.groups)) * run
    with pytest.raises(BadChannelOptions, match="measured"):
        PagcpOptions(bounds, search="sweep", measured=True)
