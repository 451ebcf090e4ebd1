"""The oracle: how much every task's loss rises when channels are switched off.

Losses are kept per sample, so candidates are compared with the reference on the same samples (a paired test), and
the order of batches does not matter. Batch norms take the statistics of the batch by default: without that the oracle
measures mostly the shift of statistics that re-estimation removes (specs/pagcp.md section 7).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import torch
from torch import nn

from pruners.batchnorm import averaging, tracked_norms, use_batch_statistics_
from pruners.channels import Groups
from pruners.channels.masker import Masker, Removal
from pruners.pagcp.options import PagcpOptions
from pruners.pagcp.replay import Replay, Unsteady
from pruners.pagcp.tasks import Losses, TaskData, joined, of_batch, rises


@dataclass(slots=True)
class Effort:
    """What the search has cost so far.

    Attributes:
        calls: candidates judged.
        samples: sample forwards asked for, a fraction of which the cache answered.
        early: candidates decided before all samples were seen.
        errors: accepted candidates that all samples together would have rejected (the test's effective error).
        gradient_passes: forward and backward passes over all samples for Fisher scores, all tasks together.
    """

    calls: int = 0
    samples: int = 0
    early: int = 0
    errors: int = 0
    gradient_passes: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate holds every task's bound; `losses` of all samples, unless it was decided early."""

    holds: bool
    losses: Losses | None
    worst: str = ""


@dataclass(slots=True)
class Oracle:
    """Judges removals on a working copy of the model; the caller's model is never touched.

    Attributes:
        reference: losses per sample that rises refer to; the search moves it.
    """

    model: nn.Module
    groups: Groups
    data: TaskData
    masker: Masker
    replay: Replay
    z: float | None
    effort: Effort
    reference: Losses = field(default_factory=dict)

    @property
    def forwards(self) -> float:
        """Full forward passes over all samples, cached parts not counted."""
        return self.replay.forwards

    def rises(self, losses: Losses) -> dict[str, float]:
        """Relative rise of every task over the reference."""
        return rises(losses, self.reference, self.data.floors)

    def losses(self, removal: Removal | None = None) -> Losses:
        """Losses of all samples with these units off besides those already off."""
        removal = removal or {}
        self.effort.calls += 1
        changed = self._changed(removal)
        with self.masker.without(removal):
            return joined([self._batch(number, changed) for number in range(len(self.data.batches))])

    def outputs(self, removal: Removal) -> Generator[Any, None, None]:
        """Outputs of one batch after the other with these units off besides those already off."""
        changed = self._changed(removal)
        with self.masker.without(removal):
            for number in range(len(self.data.batches)):
                yield self._run(number, changed, _forward)

    def judge(self, removal: Removal, bounds: Mapping[str, float], *, complete: bool = False) -> Verdict:
        """Whether every task stays within 1 + bound of the reference.

        With a sequential test (`z`), from the second batch on: rejected when any task's paired mean lies z standard
        errors above its bound, accepted when all lie as far below; then `losses` is None.

        Args:
            complete: no early decision: all samples are seen.
        """
        self.effort.calls += 1
        changed = self._changed(removal)
        parts: list[Losses] = []
        with self.masker.without(removal):
            for number in range(len(self.data.batches)):
                parts.append(self._batch(number, changed))
                last = number + 1 == len(self.data.batches)
                if self.z is not None and not complete and number >= 1 and not last:
                    early = self._sequential(joined(parts), bounds)
                    if early is not None:
                        self.effort.early += 1
                        return Verdict(early, None)
        losses = joined(parts)
        found = self.rises(losses)
        worst = max(found, key=lambda task: found[task] - bounds.get(task, 0.0)) if found else ""
        holds = all(value <= bounds.get(task, float("inf")) for task, value in found.items())
        return Verdict(holds, losses, worst)

    def commit(self, removal: Removal) -> None:
        """Switch units off for good; stored outputs that they may change are forgotten."""
        self.replay.forget(self._changed(removal))
        self.masker.switch_off(removal)

    def reset(self, removal: Removal) -> None:
        """Make exactly these units the ones that are off."""
        self.replay.forget()
        self.masker.reset(removal)

    def _changed(self, removal: Removal) -> set[str]:
        """Names of the tensors that masks of these units change, aliases included."""
        slots = self.groups.atoms.by_name
        names: set[str] = set()
        for place, units in removal.items():
            if tuple(units):
                for member in self.groups.groups[place].members:
                    slot = slots[member.tensor]
                    names |= {slot.name, *slot.aliases}
        return names

    def _batch(self, number: int, changed: set[str]) -> Losses:
        found: Losses = self._run(number, changed, of_batch)
        self.effort.samples += len(next(iter(found.values())))
        return found

    def _run(self, number: int, changed: set[str], of: Callable[[TaskData, nn.Module, Any], Any]) -> Any:
        batch, share = self.data.batches[number], 1 / len(self.data.batches)
        try:
            with self.replay.running(number, batch, changed, share):
                return of(self.data, self.model, batch)
        except Unsteady:
            with self.replay.running(number, batch, changed, share):
                return of(self.data, self.model, batch)

    def _sequential(self, losses: Losses, bounds: Mapping[str, float]) -> bool | None:
        assert self.z is not None
        below = True
        for task, values in losses.items():
            allowed, floor = 1 + bounds.get(task, float("inf")), self.data.floors.get(task, 0.0)
            if allowed == float("inf"):
                continue
            paired = values + floor - allowed * (self.reference[task][: len(values)] + floor)
            paired = paired[~torch.isnan(paired)]
            if len(paired) < 2:
                below = False
                continue
            middle, error = float(paired.mean()), float(paired.std()) / sqrt(len(paired))
            if middle - self.z * error > 0 or middle != middle:
                return False
            below = below and middle + self.z * error < 0
        return True if below else None


def _forward(data: TaskData, model: nn.Module, batch: Any) -> Any:
    with torch.no_grad():
        return data.forward(model, batch)


def make_oracle(
    model: nn.Module, groups: Groups, data: TaskData, options: PagcpOptions, example_inputs: tuple[Any, ...]
) -> Oracle:
    """Copy the model and take the reference losses of all samples."""
    working = copy.deepcopy(model).eval()
    replay = Replay(working, len(data.batches), options.cache_bytes)
    replay.learn(example_inputs)
    if options.batch_statistics:
        use_batch_statistics_(working)
    oracle = Oracle(working, groups, data, Masker(working, groups), replay, options.z, Effort())
    oracle.reference = oracle.losses()
    return oracle


def reestimate_batchnorm_(model: nn.Module, data: TaskData) -> None:
    """Set running statistics to the average of the calibration batches' own; everything else stays in eval mode."""
    if not tracked_norms(model):
        return
    with averaging(model):
        for batch in data.batches:
            data.forward(model, batch)
