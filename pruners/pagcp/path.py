"""The default search: one global order of channels, cut where the first task reaches its bound.

Order: per-task-maximum Fisher information over the MACs saved. A position on it is found by bisection with the
per-task oracle, or by the cost target; the number of oracle calls does not depend on the number of groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pruners.channels.errors import InfeasibleBudget
from pruners.pagcp.options import PagcpOptions
from pruners.pagcp.oracle import Oracle
from pruners.pagcp.ranking import Chosen, Path
from pruners.pagcp.result import Step

Progress = Callable[[int, int], None]
RESOLUTION = 500
"""The bisection ends at this fraction of a long path."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A position on the path and the positions that were tried."""

    path: Path
    position: int
    steps: tuple[Step, ...]

    @property
    def removal(self) -> Chosen:
        """What goes."""
        return self.path.removal(self.position)

    def shorter(self, times: int) -> Cut | None:
        """Further back along the path, in steps that double; None where nothing is left to give back."""
        if self.position == 0:
            return None
        back = max(1, len(self.path.order) // 50) * 2 ** (times - 1)
        return Cut(self.path, max(0, self.position - back), self.steps)


def cut_path(oracle: Oracle, path: Path, options: PagcpOptions, on_step: Progress | None = None) -> Cut:
    """Choose the position: the shortest that meets the cost target, or the longest that every task's bound allows.

    Raises:
        InfeasibleBudget: the whole path does not reach the target.
    """
    if options.target is not None:
        position = path.first_within(options.target)
        if position is None:
            raise InfeasibleBudget(options.quantity, options.target, path.costs[-1], path.costs[0])
        if position == 0:
            return Cut(path, 0, ())
        verdict = oracle.losses(path.removal(position))
        rises = oracle.rises(verdict)
        holds = all(rises[task] <= bound for task, bound in options.max_rise.items())
        return Cut(path, position, (_step(path, position, rises, options, holds),))
    return _bisect(oracle, path, options, on_step)


def _bisect(oracle: Oracle, path: Path, options: PagcpOptions, on_step: Progress | None) -> Cut:
    low, high = 0, len(path.order) + 1
    steps: list[Step] = []
    gap = max(1, len(path.order) // RESOLUTION)
    total = max(1, (high // gap).bit_length())
    while high - low > gap:
        middle = (low + high) // 2
        removal = path.removal(middle)
        verdict = oracle.judge(removal, options.max_rise)
        rises = oracle.rises(verdict.losses) if verdict.losses is not None else {}
        steps.append(_step(path, middle, rises, options, verdict.holds))
        low, high = (middle, high) if verdict.holds else (low, middle)
        if on_step is not None:
            on_step(min(len(steps), total), total)
    return Cut(path, low, tuple(steps))


def _step(path: Path, position: int, rises: dict[str, float], options: PagcpOptions, accepted: bool) -> Step:
    removed = sum(len(units) for units in path.removal(position).values())
    return Step(f"position {position}", removed, path.costs[position], rises, dict(options.max_rise), accepted)
