"""Tolerances against the roots printed in the specification, and the identities that define them."""

from __future__ import annotations

from math import isclose, prod

import pytest

from pruners.channels import BadChannelOptions
from pruners.pagcp import decay_of, first_of, suggested_first, tolerances


@pytest.mark.parametrize(
    ("first", "ratio", "groups", "decay", "last"),
    [
        (0.06, 6, 52, 0.976893, 0.018212),
        (0.06, 6, 69, 0.971581, 0.008447),
        (0.06, 6, 86, 0.969300, 0.004237),
        (0.06, 6, 103, 0.968211, 0.002224),
        (0.06, 6, 31, 0.999443, 0.059006),
        (0.06, 6, 30, 1.001747, 0.063116),
        (0.05, 1.5, 9, 0.979470, 0.042355),
        (0.06, 6, 2, 77.672956, 4.660377),
    ],
)
def test_decay_has_the_published_roots(first: float, ratio: float, groups: int, decay: float, last: float) -> None:
    found = decay_of(first, ratio, groups)
    assert found == pytest.approx(decay, abs=1e-6 if decay < 10 else 1e-5)
    assert first * found ** (groups - 1) == pytest.approx(last, abs=1e-6 if decay < 10 else 1e-5)


def test_each_task_spends_its_own_bound_exactly() -> None:
    bounds = {"seg": 0.03, "depth": 0.05, "edges": 0.4}
    spread = tolerances(bounds, 12)
    for task, bound in bounds.items():
        assert isclose(prod(1 + spread.at(step)[task] for step in range(12)), 1 + bound, rel_tol=1e-9)


def test_equal_bounds_give_the_published_tolerances() -> None:
    spread = tolerances({"a": 0.5, "b": 0.5}, 9, first=0.05)
    assert spread.decay == pytest.approx(0.979470, abs=1e-6)
    for step in range(9):
        assert spread.at(step) == pytest.approx(dict.fromkeys(("a", "b"), 0.05 * spread.decay**step))


def test_no_rise_allowed_gives_no_tolerance_whatever_the_others_have() -> None:
    spread = tolerances({"strict": 0.0, "free": 0.5}, 5)
    assert all(spread.at(step)["strict"] == 0 for step in range(5))
    assert isclose(prod(1 + spread.at(step)["free"] for step in range(5)), 1.5, rel_tol=1e-9)
    assert tolerances({"a": 0.0}, 5).at(0) == {"a": 0.0}


@pytest.mark.parametrize("groups", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("bound", [0.001, 0.03, 0.25, 5.0])
def test_the_suggested_first_tolerance_always_has_a_root(bound: float, groups: int) -> None:
    first = suggested_first(bound, groups)
    decay = decay_of(first, 1 + bound, groups)
    assert isclose(prod(1 + first * decay**step for step in range(groups)), 1 + bound, rel_tol=1e-6)
    assert first_of(bound, decay, groups) == pytest.approx(first, rel=1e-6)


def test_a_first_group_above_the_bound_is_refused() -> None:
    with pytest.raises(BadChannelOptions, match=r"5\.00%, the bound for all is 3\.00%"):
        decay_of(0.05, 1.03, 9)
