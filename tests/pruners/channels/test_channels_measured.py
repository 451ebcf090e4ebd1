"""Scores in one currency: what the outputs show, the largest of several outputs, the model untouched, a better cut."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruners.channels import Budget, CostModel, Groups, ScoreOptions, analyse, apply_, measured, plan, score
from pruners.channels.measured import distance, factors, first_batches


class Loud(nn.Module):
    """Two inner widths of equal shapes and weights of equal size; the second one's effect is 30 times as large."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quiet_in, self.quiet_out = nn.Linear(6, 16), nn.Linear(16, 4)
        self.loud_in, self.loud_out = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.quiet_out(torch.relu(self.quiet_in(x))) + 30 * self.loud_out(torch.relu(self.loud_in(x)))


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
    x = torch.cat([batch[0] for batch in samples()])
    for place, values in enumerate(scores):
        low = np.argsort(values, kind="stable")[:8]
        changed = copy.deepcopy(net)
        layer = getattr(changed, groups.groups[place].name.partition(".")[0])
        with torch.no_grad():
            layer.weight[low] = 0.0
            layer.bias[low] = 0.0
            wanted = distance([net(x)], [changed(x)]) / values[low].sum()
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
    assert np.isnan(distance([["text"]], [["other"]]))
    assert np.isnan(distance([torch.zeros(4, 2)], [torch.zeros(3, 2)]))  # detections of another number


def test_groups_that_cannot_be_compared_keep_their_scores() -> None:
    assert factors([np.zeros(4), np.ones(4)], lambda _: ["no tensor"]) == [1.0, 1.0]
    nan = torch.full((4, 2), float("nan"))
    assert factors([np.ones(4)], lambda off: [nan if off else torch.randn(4, 2)]) == [1.0]


def test_only_as_many_batches_run_as_hold_the_samples() -> None:
    assert first_batches([(torch.zeros(100, 2),)] * 5) == 3
    assert first_batches([(torch.zeros(100, 2),)] * 2) == 2
    assert first_batches([{"x": torch.zeros(300, 2)}] * 2) == 1
