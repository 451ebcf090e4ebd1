"""The metrics of every task at each stage of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress_cli.quality import Quality, Score

if TYPE_CHECKING:
    from torch import nn

    from compress_cli.report import TaskRow
    from compress_cli.session import Session


NOTICED = 0.001
"""Relative; a smaller change of a metric is not worth a warning."""


def _read(fields: Mapping[str, Any]) -> Score:
    """A recorded score; JSON has no NaN, `finite` wrote null."""
    values: dict[str, Any] = {name: math.nan if value is None else value for name, value in fields.items()}
    return Score(**values)


class Scores:
    """Evaluates at each stage; what an interrupted run of the same folder has measured is kept."""

    def __init__(self, session: Session, quality: Quality | None) -> None:
        self._session = session
        self._quality = quality
        self._by_stage: dict[str, Mapping[str, Score]] = {}

    def take(self, stage: str, module: nn.Module | None) -> None:
        """Evaluate the module on the whole test split, where there is one, and remember it under `stage`."""
        if self._quality is None or not self._quality.can_evaluate or module is None:
            return
        if not self._session.last and stage not in ("original", "final"):
            return  # a step in between: what it leaves is all that matters
        recorded = self._session.recorded(f"scores {stage}")
        if recorded is not None:
            self._by_stage[stage] = {name: _read(fields) for name, fields in recorded.items()}
            return
        quality, session = self._quality, self._session
        with session.stage("evaluate", f"Evaluating: {stage}"):
            if stage == "original":
                found = session.baseline.once("original scores", lambda: quality.evaluate(module))
            else:
                found = quality.evaluate(module)
            self._by_stage[stage] = found
        self._session.out.info("  " + ", ".join(f"{name} {score.value:.2f}" for name, score in found.items()))
        record: dict[str, Any] = {name: dataclasses.asdict(score) for name, score in found.items()}
        self._session.folder.finish_stage(f"scores {stage}", record)

    def warn_of_harm(self) -> None:
        """Say so where training has left a metric worse than it was right before."""
        stages = [stage for stage in self._by_stage if stage not in ("original", "final")]
        if self._quality is None or not stages or "final" not in self._by_stage:
            return
        before, after = self._by_stage[stages[-1]], self._by_stage["final"]
        for task in self._quality.tasks:
            metric: Any = task.metric
            if task.name not in after or metric is None:
                continue
            had, has = before[task.name].value, after[task.name].value
            loss = had - has if metric.higher_is_better else has - had
            broken = math.isnan(has) and not math.isnan(had)
            if broken or loss > max(NOTICED * abs(had), 1e-6):
                unit = metric.unit
                self._session.warn(
                    f"{task.name} is {has:.4g}{unit} after fine-tuning and was {had:.4g}{unit} right before it;"
                    " train for longer, or with a lower --lr"
                )

    def rows(self) -> tuple[TaskRow, ...]:
        """One row per task for the report."""
        return self._quality.rows(self._by_stage) if self._quality is not None and self._by_stage else ()

    @property
    def data(self) -> dict[str, Any] | None:
        """The report's section on the data; None without any."""
        return None if self._quality is None else dict(self._quality.record)
