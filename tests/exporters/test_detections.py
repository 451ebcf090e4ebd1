"""Detections are compared row by row, whatever the order of near-equal scores."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.detections import paired

NAMES = ("output_0.boxes", "output_0.scores", "output_0.labels", "features")


def findings(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 100, (6, 4)).astype(np.float32)
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.2, 0.1], np.float32)
    return [boxes, scores, np.array([1, 2, 3, 2, 1, 1]), rng.normal(size=(6, 3)).astype(np.float32)]


def test_ties_in_another_order_are_put_back() -> None:
    expected = findings()
    order = [0, 3, 1, 2, 4, 5]
    got = [array[order] for array in expected[:3]] + [expected[3]]
    found = paired(NAMES, expected, got, 1e-4)
    assert (found.moved, found.alone, found.findings) == (1, 0, 6)
    assert "another order" in found.notes()[0]
    for left, right in zip(found.expected, found.got, strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(found.expected[0], expected[0])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_too_many_findings_without_partner_change_nothing(place: int) -> None:
    expected = findings()
    order = [0, 3, 1, 2, 4, 5]
    got = [array[order].copy() for array in expected[:3]] + [expected[3]]
    got[place][1] += 1
    found = paired(NAMES, expected, got, 1e-4)
    assert (found.moved, found.alone) == (0, 0)
    assert all(np.array_equal(left, right) for left, right in zip(got, found.got, strict=True))


def test_one_of_a_hundred_may_be_another() -> None:
    rng = np.random.default_rng(0)
    expected = [rng.uniform(0, 9, (100, 4)), np.sort(rng.uniform(size=100))[::-1], np.arange(100)]
    got = [np.concatenate([array[:40], array[41:], array[:1] + 5]) for array in expected]
    found = paired(NAMES[:3], expected, got, 1e-4)
    assert (found.alone, found.findings) == (1, 100)
    assert "no partner" in found.notes()[-1]
    assert len(found.expected[0]) == len(found.got[0]) == 99
    assert 40 not in found.expected[2]
    np.testing.assert_array_equal(found.expected[0], found.got[0])


def test_rows_of_other_outputs_keep_their_places() -> None:
    expected = [findings()[3]]
    got = [expected[0][::-1]]
    found = paired(["features"], expected, got, 1e-4)
    assert (found.moved, found.findings) == (0, 0)
    assert np.array_equal(found.got[0], got[0])


def test_different_numbers_of_findings_are_left_to_the_comparison() -> None:
    expected = findings()
    got = [array[:5] for array in expected]
    assert len(paired(NAMES, expected, got, 1e-4).got[0]) == 5


@pytest.mark.parametrize("here", [0, 6])
@pytest.mark.parametrize("there", [0, 6])
def test_no_findings_at_all_on_one_side_or_both_are_left_to_the_comparison(here: int, there: int) -> None:
    expected, got = ([array[:count] for array in findings()] for count in (here, there))
    found = paired(NAMES, expected, got, 1e-4)
    assert [len(array) for array in found.expected] == [here] * 4
    assert [len(array) for array in found.got] == [there] * 4
