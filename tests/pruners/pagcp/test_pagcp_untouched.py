"""Which tensors a change reaches, and what the cache saves by knowing it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruners.channels import analyse
from pruners.pagcp import PagcpOptions, TaskData
from pruners.pagcp.oracle import make_oracle
from pruners.pagcp.untouched import Untouched

INPUT, WEIGHT = torch.arange(12.0).reshape(3, 4) - 5, torch.eye(4)

UNTOUCHED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a function": lambda x, w: F.relu(x),
    "a view": lambda x, w: x[:, 1:],
    "a constant made on the way": lambda x, w: x + torch.ones(4),
    "written in place": lambda x, w: x.clone().add_(1),
    "the shape of a changed tensor": lambda x, w: x * (x @ w).shape[0],
    "a list": lambda x, w: torch.cat([x, x.abs()]),
    "a loss": lambda x, w: F.cross_entropy(x, torch.zeros(3, dtype=torch.long)),
    "a part of several": lambda x, w: x.chunk(2, dim=1)[1],
}


def _written(x: Tensor, w: Tensor) -> Tensor:
    y = x.clone()
    y[0].add_(w[0])
    return y


def _assigned(x: Tensor, w: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = w[0, :3]
    return y


REACHED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a product": lambda x, w: x @ w,
    "further on": lambda x, w: (x @ w).sum(0) + x,
    "one of a list": lambda x, w: torch.cat([x, w]),
    "a view written to": _written,
    "an assignment": _assigned,
    "a number": lambda x, w: x * w.sum().item(),
    "a truth": lambda x, w: x if bool(w.sum() > 0) else -x,
    "a length that depends on data": lambda x, w: x * len(w[w > 0]),
    "indices that depend on data": lambda x, w: x * w.nonzero().shape[0],
    "numpy": lambda x, w: x * float(w.numpy().sum()),
    "random numbers": lambda x, w: x + torch.randn(4),
    "dropout": lambda x, w: F.dropout(x, training=True),
    "an unseen constant": lambda x, w: x + UNSEEN,
}
UNSEEN = torch.ones(4)


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_is_made_from_untouched_tensors_is_untouched(name: str) -> None:
    with torch.no_grad(), Untouched([WEIGHT], [INPUT, WEIGHT]) as follow:
        assert follow.holds(UNTOUCHED[name](INPUT, WEIGHT))


@pytest.mark.parametrize("name", REACHED)
def test_what_a_change_may_have_reached_is_not_untouched(name: str) -> None:
    with torch.no_grad(), Untouched([WEIGHT], [INPUT, WEIGHT]) as follow:
        found = REACHED[name](INPUT, WEIGHT)
        assert not follow.holds(found)


class Wired(nn.Module):
    """Two heads of two layers each, called by turns, with free functions between them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(1, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.left_out, self.right_out = nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.trunk(x))
        left, right = self.left(x), self.norm(self.right(x * 2))
        return [self.left_out(left.relu_()), self.right_out(F.relu(right, inplace=True))]


@pytest.mark.parametrize("statistics", [True, False])
def test_a_unit_in_one_head_costs_that_head_and_gives_the_same_losses(statistics: bool) -> None:
    torch.manual_seed(0)
    net = Wired().eval()
    example = (torch.randn(2, 1, 6, 6),)
    groups = analyse(net, example)
    batches = [torch.randn(5, 1, 6, 6) for _ in range(2)]
    data = TaskData(
        batches,
        lambda model, x: model(x),
        lambda y, x: {name: part.square().mean((1, 2, 3)) for name, part in zip(("left", "right"), y, strict=True)},
    )
    options = PagcpOptions(target=1, batch_statistics=statistics)
    cached = make_oracle(net, groups, data, options, example)
    plain = make_oracle(net, groups, data, dataclasses.replace(options, cache_bytes=0), example)
    names = [group.name for group in groups.groups]
    # multiplications per pixel: 4 x 1 x 9, then 8 x 4 x 9 and 2 x 8 x 9 in each head
    trunk, first, last = 36, 288, 144
    whole = trunk + 2 * (first + last)
    for name in ("left", "right"):
        group = names.index(name)
        before = cached.forwards
        found, expected = cached.losses({group: [0, 3]}), plain.losses({group: [0, 3]})
        assert all(torch.equal(found[task], expected[task]) for task in expected)
        assert not torch.equal(found[name], cached.reference[name])
        assert cached.forwards - before == pytest.approx((first + last) / whole)
    cached.commit({names.index("left"): [0, 3]})
    plain.commit({names.index("left"): [0, 3]})
    both = {names.index("left"): [1], names.index("right"): [2]}
    for removal in ({}, both, {names.index("trunk"): [1]}, {}):
        found, expected = cached.losses(removal), plain.losses(removal)
        assert all(torch.equal(found[task], expected[task]) for task in expected)
