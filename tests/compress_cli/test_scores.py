"""Metrics by stage: training that leaves one worse than it was right before is said."""

from __future__ import annotations

import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from torch import nn

from compress_cli.quality import Score
from compress_cli.scores import Scores


def warned(values: dict[str, float], *, higher_is_better: bool = True, resumed: tuple[str, ...] = ()) -> list[str]:
    recorded = {
        stage: {"top1": {"value": None if math.isnan(values[stage]) else values[stage], "loss": None, "samples": 100}}
        for stage in resumed
        if stage in values
    }
    task = SimpleNamespace(name="top1", metric=SimpleNamespace(higher_is_better=higher_is_better, unit=""))
    waiting = iter(value for stage, value in values.items() if stage not in recorded)
    quality = MagicMock(can_evaluate=True, tasks=(task,))
    quality.evaluate.side_effect = lambda _: {"top1": Score(next(waiting), 0.5, 100)}
    session = MagicMock(last=True)
    # JSON has no NaN: a run that is resumed reads null
    session.recorded.side_effect = lambda stage: recorded.get(stage.removeprefix("scores "))
    session.baseline.once = lambda _, compute: compute()
    scores = Scores(session, quality)
    for stage in values:
        scores.take(stage, nn.Identity())
    scores.warn_of_harm()
    return [call.args[0] for call in session.warn.call_args_list]


def test_training_that_costs_accuracy_is_said_with_what_to_change() -> None:
    (said,) = warned({"original": 93.39, "pruned": 47.88, "recovered": 91.43, "final": 90.42})
    assert said.startswith("top1 is 90.42 after fine-tuning and was 91.43 right before it")
    assert "--lr" in said
    assert len(warned({"original": 1.0, "pruned": 2.0, "final": 2.5}, higher_is_better=False)) == 1
    (said,) = warned({"pruned": 0.00121, "final": 0.00134}, higher_is_better=False)
    assert "0.00134 after" in said
    assert len(warned({"pruned": 91.0, "final": math.nan})) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"original": 93.39, "pruned": 47.88, "recovered": 91.43, "final": 92.0},
        {"original": 93.39, "recovered": 91.43, "final": 91.40},  # within a thousandth
        {"original": 93.39, "final": 90.0},  # nothing was measured right before it
        {"original": 93.39, "pruned": 91.0},
        {"pruned": math.nan, "final": math.nan},  # nothing was counted
        {"pruned": 0.0, "final": -1e-9},
    ],
)
def test_otherwise_it_is_silent(values: dict[str, float]) -> None:
    assert warned(values) == []
    assert warned(values, resumed=("original", "pruned")) == []
