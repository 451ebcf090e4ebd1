"""What a search found: the channels plan and the record of how it was found, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pruners.channels import ChannelsPlan, Fitted, Groups


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What the loss of some channels of one group alone does to every task.

    Attributes:
        removed: how many of its `channels` were switched off, lowest scores first.
        rises: relative rise of the loss by task, in the search's own oracle.
        task: the one that suffers most.
    """

    group: str
    channels: int
    removed: int
    macs_saved: int
    params_saved: int
    rises: Mapping[str, float]
    task: str


@dataclass(frozen=True, slots=True)
class Step:
    """One decision of the search.

    Attributes:
        what: the group (sweep), or `position N` of the path.
        removed: channels that go in this step (sweep), or altogether (path).
        cost: MACs or parameters after it.
        rises: of every task's loss, over the reference of the moment.
        bounds: what was allowed.
        accepted: whether it was kept.
    """

    what: str
    removed: int
    cost: int
    rises: Mapping[str, float]
    bounds: Mapping[str, float]
    accepted: bool
    round: int = 1


@dataclass(frozen=True, slots=True)
class FinalCheck:
    """The tasks on the really cut model, in eval mode, against the original.

    Attributes:
        before, after: mean losses by task.
        rises: relative, floors included.
        holds: every task within its bound; None without bounds.
        worst: the task closest to its bound or farthest above it; empty without bounds.
        backed_off: how often channels were given back because a bound did not hold.
        samples: it judged by, those of the task that has fewest targets.
        held_out: channels were not ranked by them; batch norms and what was given back may be chosen by them.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    rises: Mapping[str, float]
    bounds: Mapping[str, float]
    holds: bool | None
    worst: str
    backed_off: int
    samples: int = 0
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class SearchRecord:
    """How the plan came about.

    Attributes:
        quantity: `macs` or `params`; `dense` and `found` are its values before and after, `target` the limit.
        samples: calibration samples of the search.
        floors: eps by task, part of every relative rise.
        decay: of the tolerances (sweep).
        full_forwards: passes over all samples in full-forward equivalents, MACs answered by the cache left out;
            `calls` is the number of candidates judged; both without the sensitivity table, whose own cost follows.
        early, test_errors: candidates decided by the sequential test, and how many of its acceptances were wrong.
        seconds: by part of the search.
    """

    search: str
    options: Mapping[str, Any]
    quantity: str
    dense: int
    found: int
    target: int | None
    samples: int
    floors: Mapping[str, float]
    steps: tuple[Step, ...]
    check: FinalCheck
    full_forwards: float
    calls: int
    gradient_passes: int
    early: int
    test_errors: int
    sensitivity: tuple[Sensitivity, ...] = ()
    sensitivity_forwards: float = 0.0
    decay: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the cost target was reached; None without one."""
        return None if self.target is None else self.found <= self.target

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The proved cut with its plan, and the record of the search."""

    fitted: Fitted
    record: SearchRecord

    @property
    def plan(self) -> ChannelsPlan:
        """What goes."""
        return self.fitted.plan

    @property
    def groups(self) -> Groups:
        """The analysis that the plan came from."""
        return self.fitted.groups
