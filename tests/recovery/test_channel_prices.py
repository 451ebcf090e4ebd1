"""Channel prices: least squares as the oracle, and that they pay on a network."""

from __future__ import annotations

import copy

import numpy as np
import torch

from compress_cli.recovery import RecoveryOptions, recover
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
