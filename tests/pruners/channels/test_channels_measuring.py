"""Scores in one currency: what the outputs show, the largest of several outputs, the model untouched, a better cut."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruners.channels import Budget, CostModel, Groups, ScoreOptions, analyse, apply_, measured, plan, score
from pruners.channels.errors import BadChannelOptions
from pruners.channels.measuring import distance, factors


class Loud(nn.Module):
    """Two inner widths of equal shapes and weights of equal size; the second one's effect is 30 times as large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quiet_in, self.quiet_out = nn.Linear(6, 16), nn.Linear(16, 4)
        self.loud_in, self.loud_out = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.quiet_out(torch.relu(self.quiet_in(x))) + 30 * self.loud_out(torch.relu(self.loud_in(x)))


@dataclass
class Wrapped:
    inside: Any


def samples(count: int = 64) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 6, generator=generator),) for _ in range(count // 16)]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return Loud().eval()


@pytest.fixture(scope="module")
def groups(net: nn.Module) -> Groups:
    return analyse(net, samples()[0])


def test_factors_are_the_outputs_change_over_the_scores_that_went(net: nn.Module, groups: Groups) -> None:
    scores = score(net, groups, ScoreOptions("magnitude", "none"))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = measured(net, groups, scores, samples())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    cost = CostModel(groups)
    for place, values in enumerate(scores):
        low = np.argsort(values, kind="stable")[:8]
        changed = copy.deepcopy(net)
        layer = getattr(changed, groups.groups[place].name.partition(".")[0])
        with torch.no_grad():
            layer.weight[low] = 0.0
            layer.bias[low] = 0.0
            pairs = [(net(x), changed(x)) for (x,) in samples()]
        wanted = distance(*zip(*pairs, strict=True)) / values[low].sum()
        saved = [cost.saving(place, unit).macs for unit in range(16)]
        np.testing.assert_allclose(found[place], values * wanted / saved, rtol=1e-4)


def test_what_the_outputs_feel_most_stays(net: nn.Module, groups: Groups) -> None:
    budget = Budget(macs=CostModel(groups).macs // 2)
    scores = score(net, groups, ScoreOptions("magnitude", "none"))
    x = samples()[0][0]
    errors = {}
    for name, found in (("plain", scores), ("measured", measured(net, groups, scores, samples()))):
        small = copy.deepcopy(net)
        apply_(small, plan(groups, found, budget))
        with torch.no_grad():
            errors[name] = distance([net(x)], [small(x)])
    assert errors["measured"] < 0.2 * errors["plain"]


def test_the_output_that_changes_most_counts_relative_to_its_own_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 3, generator=generator), 100 * torch.randn(50, 3, generator=generator) + 1000
    before = [{"a": a, "b": b, "name": "text", "count": torch.tensor(3)}]
    assert distance(before, [{"a": a, "b": b, "name": "text", "count": torch.tensor(4)}]) == 0.0
    assert distance(before, [{"a": a + a.std(), "b": b + 0.1, "name": "text", "count": torch.tensor(3)}]) == (
        pytest.approx(1.0, rel=0.1)
    )
    halves = [{"a": a[:20], "b": b[:20]}, {"a": a[20:], "b": b[20:]}]
    moved = [{"a": part["a"], "b": part["b"] + 50} for part in halves]
    assert distance(halves, moved) == pytest.approx(0.25, rel=0.1)
    assert distance(iter(halves), iter(moved)) == distance(halves, moved)
    constant = [{"a": part["a"], "b": torch.ones(len(part["a"]), 2)} for part in halves]
    assert distance(constant, [{"a": part["a"], "b": part["b"] + 9} for part in constant]) == 0.0
    sizes = [torch.randn(4, 1, n, n, generator=generator) for n in (5, 7)]
    assert distance(sizes, [item + 1 for item in sizes]) > 0.5
    assert np.isnan(distance([["text"]], [["other"]]))
    wrapped = [[Wrapped(part) for part in item] for item in (halves, moved)]
    assert distance(*wrapped) == distance(halves, moved)
    assert np.isnan(distance([torch.zeros(4, 2)], [torch.zeros(3, 2)]))  # detections of another number


def outputs_that_move(amounts: dict[int, float]) -> Any:
    """Outputs that change by so much for each unit that is off."""
    base = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))

    def outputs(removal: Mapping[int, Sequence[int]]) -> Generator[Any, None, None]:
        amount = sum(amounts.get(unit, 0.0) for units in removal.values() for unit in units)
        yield base[:20] + amount
        yield base[20:] + amount

    return outputs


def test_groups_without_scores_get_the_median() -> None:
    one = factors([np.ones(4)], outputs_that_move({0: 1.0, 1: 1.0}))
    assert factors([np.ones(4), np.zeros(4)], outputs_that_move({0: 1.0, 1: 1.0})) == one * 2
    assert factors([np.zeros(4)], outputs_that_move({})) == [1.0]


def test_a_dead_half_does_not_make_the_rest_worthless() -> None:
    scores = [np.array([1.0, 1.0, 5.0, 9.0])]
    assert factors(scores, outputs_that_move({2: 1.0, 3: 1.0}))[0] > 0
    assert factors(scores, outputs_that_move({})) == [0.0]


def test_outputs_that_cannot_be_compared_are_refused() -> None:
    def words(removal: Mapping[int, Sequence[int]]) -> Generator[Any, None, None]:
        yield "no tensor"

    with pytest.raises(BadChannelOptions, match="another score"):
        factors([np.ones(4)], words)


def test_only_as_many_batches_run_as_hold_the_samples() -> None:
    seen: list[int] = []

    def outputs(removal: Mapping[int, Sequence[int]]) -> Generator[Any, None, None]:
        for _ in range(9):
            seen.append(len(removal))
            yield torch.randn(100, 2)

    factors([np.ones(4)], outputs)
    assert seen == [0, 0, 0, 1, 1, 1]
