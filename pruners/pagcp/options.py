"""Options of both searches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, isfinite
from typing import Literal, get_args

from pruners.channels.errors import BadChannelOptions

Search = Literal["path", "sweep"]
Quantity = Literal["macs", "params"]
ScoreName = Literal["fisher", "l1"]

RATIOS = tuple(step / 20 for step in range(1, 20))
"""The reference's grid of removed shares: 0.05, 0.10 ... 0.95."""


@dataclass(frozen=True, slots=True)
class PagcpOptions:
    """What is searched for and how.

    Attributes:
        max_rise: D_t: how much each task's loss may rise before fine-tuning (0.03 = 3 %); empty: no constraint.
        target: at most so many MACs or parameters; None: as few as the constraint allows.
        search: `path` (global ranking, bisected) or `sweep` (the published procedure).
        quantity: what `target` counts and scores are divided by.
        score: order of channels; None: Fisher for the path, L1 for the sweep.
        min_channels: kept per group: a count or a percentage; at least one always stays.
        round_to: kept counts are multiples of this, rounded up (a group that is no multiple may stay whole).
        batch_statistics: batch norms use the batch's own statistics in the search; False: their running values.
        first_rise: sweep: d_1; None: 5 %, in proportion for bounds below 25 %.
        top: sweep: P, the share of pruned groups that is kept after each round, best rise per saving first.
        rounds: sweep: at most so many; 1 without a target is the published single round.
        round_rise: sweep: the bound D of every round when no constraint is given.
        z: paired sequential test, rejects and accepts at so many standard errors; None: every sample every time.
        cache_bytes: memory for outputs that a candidate does not change; 0 turns the cache off.
        measured: path: scores are multiplied by what the outputs show when half of a group is off
            (`pruners.channels.measuring`).
        probe: share of a group's channels that the sensitivity table removes; 0: no table.
    """

    max_rise: Mapping[str, float] = field(default_factory=dict)
    target: int | None = None
    search: Search = "path"
    quantity: Quantity = "macs"
    score: ScoreName | None = None
    min_channels: str = "5%"
    round_to: int = 1
    batch_statistics: bool = True
    first_rise: float | None = None
    top: float = 1.0
    rounds: int = 1
    round_rise: float = 0.5
    z: float | None = 3.0
    cache_bytes: int = 1 << 30
    measured: bool = False
    probe: float = 0.3

    def __post_init__(self) -> None:
        for task, rise in self.max_rise.items():
            if not (rise >= 0 and isfinite(rise)):
                raise BadChannelOptions(f"the loss rise of {task!r} must be 0 or more, not {rise}")
        for field_name, given, known in (
            ("search", self.search, get_args(Search)),
            ("quantity", self.quantity, get_args(Quantity)),
            ("score", self.score, (None, *get_args(ScoreName))),
        ):
            if given not in known:
                raise BadChannelOptions(f"{field_name} {given!r} is unknown; known: {', '.join(filter(None, known))}")
        if not self.max_rise and self.target is None:
            raise BadChannelOptions("neither a bound on the tasks' losses nor a cost target is given")
        for name, value, least in (
            ("round_to", self.round_to, 1),
            ("rounds", self.rounds, 1),
            ("target", self.target, 0),
        ):
            if value is not None and value < least:
                raise BadChannelOptions(f"{name} must be at least {least}, not {value}")
        if self.measured and self.search != "path":
            raise BadChannelOptions("measured scores are for the path: the published search has its own order")
        if not 0 < self.top <= 1:
            raise BadChannelOptions(f"the share of groups kept must be above 0 and at most 1, not {self.top}")
        if not 0 <= self.probe < 1:
            raise BadChannelOptions(f"the probed share must be at least 0 and below 1, not {self.probe}")
        floor_of(self.min_channels, 100)

    @property
    def ranking(self) -> ScoreName:
        """The score in use."""
        return self.score or ("fisher" if self.search == "path" else "l1")


def reference(**changes: object) -> PagcpOptions:
    """The published configuration: L1, running batch-norm statistics, every sample, nothing cached, P = 0.8."""
    values: dict[str, object] = {
        "search": "sweep",
        "score": "l1",
        "batch_statistics": False,
        "z": None,
        "cache_bytes": 0,
        "top": 0.8,
    }
    return PagcpOptions(**{**values, **changes})  # type: ignore[arg-type]


def floor_of(text: str, channels: int) -> int:
    """The least number of channels of a group that stay: `4`, or `5%` of it, rounded up; at least 1.

    Raises:
        BadChannelOptions: neither a count nor a percentage.
    """
    body = text.strip().removesuffix("%")
    try:
        value = float(body) if text.strip().endswith("%") else int(body)
    except ValueError as error:
        raise BadChannelOptions(f"{text!r} is neither a number of channels nor a percentage") from error
    if not value >= 0 or (text.strip().endswith("%") and value > 100):
        raise BadChannelOptions(f"{text!r} is neither a number of channels nor a percentage")
    least = ceil(value / 100 * channels - 1e-9) if text.strip().endswith("%") else int(value)
    return max(1, min(least, channels))


def most_removed(channels: int, wanted: int, least: int, multiple: int) -> int:
    """How many of `wanted` channels may really go so that at least `least`, and a multiple of `multiple`, stay.

    Example: of 20 channels, 7 wanted, multiples of 8: 16 stay and 4 go.
    """
    kept = max(channels - wanted, least)
    kept = -(-kept // multiple) * multiple
    return max(0, channels - kept)
