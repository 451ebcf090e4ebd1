"""Channel prices: least squares as the oracle, and that they pay on a network."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress_cli.recovery import CannotTrace, RecoveryOptions, recover
from compress_cli.recovery.channel_prices import Reader, channel_prices
from pruners import channels
from tests.recovery.nets import Residual, images, randomise


def test_a_price_is_what_least_squares_without_the_channel_loses() -> None:
    g = torch.Generator().manual_seed(0)
    rows = (torch.randn(500, 8, generator=g) @ torch.randn(8, 8, generator=g)).double()
    weights, feeling = torch.randn(8, 3, generator=g).double(), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    reader = Reader(torch.linalg.inv(rows.T @ rows), weights.clone(), feeling, 2)
    targets = rows @ weights

    def lost(gone: list[int]) -> torch.Tensor:
        kept = [column for column in range(8) if column not in gone]
        fitted = rows[:, kept] @ torch.linalg.lstsq(rows[:, kept], targets).solution
        return ((targets - fitted).square().sum(0) * feeling).sum()

    columns = reader.columns(np.array([[0], [2], [3]]))
    assert columns.tolist() == [[0, 1], [4, 5], [6, 7]]
    first = reader.prices(columns)
    torch.testing.assert_close(first, torch.stack([lost([0, 1]), lost([4, 5]), lost([6, 7])]), rtol=1e-6, atol=0)
    reader.remove_(columns[1])
    # a second channel costs what it adds to the first
    torch.testing.assert_close(reader.prices(columns[:1])[0], lost([0, 1, 4, 5]) - first[1], rtol=1e-6, atol=0)


def test_prices_rank_channels_better_than_magnitude() -> None:
    dense, x = randomise(Residual()), [images(150)]
    groups = channels.analyse(dense, (images(2)[:1],))
    prices = channel_prices(dense, x, groups)
    assert [len(values) for values in prices] == [group.units for group in groups.groups]
    assert all(np.isfinite(values).all() and (values >= 0).all() for values in prices)
    budget = channels.Budget(macs=int(channels.CostModel(groups).macs * 0.6))
    errors = {}
    for name, scores in (("price", prices), ("magnitude", channels.score(dense, groups))):
        plan = channels.plan(groups, scores, budget)
        small = copy.deepcopy(dense)
        channels.apply_(small, plan)
        record = recover(dense, small, x, correspondence=plan, options=RecoveryOptions(batch_norms=False))
        assert record.after < 0.5 * record.before
        errors[name] = record.after
    assert errors["price"] < errors["magnitude"]


class Mixed(nn.Module):
    """Queries and keys that no layer reads, and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.point = nn.Conv2d(16, 12, 1)
        self.q, self.k, self.v, self.head = (nn.Linear(12, size) for size in (16, 16, 12, 5))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.point(self.grouped(self.stem(x).relu()).relu()).flatten(2).transpose(1, 2)
        attention = (self.q(tokens) @ self.k(tokens).transpose(1, 2) / 4).softmax(-1)
        return self.head((attention @ self.v(tokens)).mean(1))


def test_groups_that_no_layer_reads_are_priced_by_what_the_outputs_show() -> None:
    dense, x = randomise(Mixed()).eval(), images(150)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    groups = channels.analyse(dense, (x[:1],))
    names = [group.name for group in groups.groups]
    prices = dict(zip(names, channel_prices(dense, [x], groups), strict=True))
    assert {"stem", "q"} <= set(names)
    assert all((values > 0).all() for values in prices.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())

    place = names.index("q")
    sizes = channels.score(dense, groups, channels.ScoreOptions("magnitude", "none"))[place]
    off = np.argsort(sizes, kind="stable")[: len(sizes) // 2].tolist()
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))  # any images: the sum is what is compared
    plan = channels.make_plan(groups, {place: off})
    with torch.no_grad(), channels.masked(dense, plan):
        moved = dense(x[order])
    with torch.no_grad():
        still = dense(x[order])
    shown = float((moved - still).square().sum() / (still - still.mean(0)).square().sum())
    saved = channels.CostModel(groups).saving(place, 0).macs
    priced = prices["q"] * saved
    np.testing.assert_allclose(priced[off].sum(), shown, rtol=0.3)  # 128 of the 150 images were run
    np.testing.assert_allclose(priced / priced.sum(), sizes / sizes.sum(), rtol=1e-6)

    budget = channels.Budget(macs=int(channels.CostModel(groups).macs * 0.7))
    cut = channels.plan(groups, list(prices.values()), budget)
    assert sum(bool(item.removed) for item in cut.groups) >= 3  # not one group emptied because it seemed free


def test_layers_too_wide_to_solve_leave_their_group_to_sizes() -> None:
    dense, x = randomise(Residual()).eval(), [images(100)]
    groups = channels.analyse(dense, (images(2)[:1],))
    sizes = channels.score(dense, groups, channels.ScoreOptions("magnitude", "none"))
    narrow = channel_prices(dense, x, groups, options=RecoveryOptions(columns=1))
    assert all((values > 0).all() for values in narrow)
    for values, own in zip(narrow, sizes, strict=True):
        assert np.array_equal(np.argsort(values, kind="stable"), np.argsort(own, kind="stable"))


class Decided(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) > 0).float()


def test_outputs_without_a_derivative_have_no_prices_and_are_recovered_all_the_same() -> None:
    dense, x = Decided(randomise(Residual())).eval(), [images(100)]
    groups = channels.analyse(dense, (images(2)[:1],))
    with pytest.raises(CannotTrace, match="none of its outputs has a derivative"):
        channel_prices(dense, x, groups)
    small = copy.deepcopy(dense)
    channels.apply_(small, plan := channels.plan(groups, channels.score(dense, groups), channels.Budget(params=1500)))
    record = recover(dense, small, x, correspondence=plan)
    assert record.after <= record.before
