"""From a search's choice to a cut model that is proved and holds its bounds: cut, check, give channels back."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pruners.channels import ChannelsPlan, Fitted, Groups, fit
from pruners.channels.surgery import cut_
from pruners.pagcp.checking import judge_cut, plan_of
from pruners.pagcp.options import PagcpOptions
from pruners.pagcp.oracle import Effort
from pruners.pagcp.path import Cut
from pruners.pagcp.ranking import Chosen
from pruners.pagcp.result import FinalCheck, Sensitivity
from pruners.pagcp.sweep import Swept
from pruners.pagcp.tasks import Losses, TaskData


@dataclass(frozen=True, slots=True, eq=False)
class Searched:
    """A search's choice over one analysis and what it cost."""

    groups: Groups
    cut: Cut | Swept
    samples: int
    effort: Effort
    full_forwards: float
    sensitivity: tuple[Sensitivity, ...]
    sensitivity_forwards: float


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """The proved cut, the search that it came from, and the final check."""

    fitted: Fitted
    searched: Searched
    check: FinalCheck


class Clock:
    """Seconds of each part; repeated parts add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Close a part."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


class Settler:
    """Cuts copies of one model and judges them; analyses and proofs run on the CPU."""

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Any, ...],
        data: TaskData,
        options: PagcpOptions,
        before: Losses,
        recalibrate: Callable[[nn.Module, ChannelsPlan], object] | None,
    ) -> None:
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.home = copy.deepcopy(model).cpu().eval()
        self.inputs = pytree.tree_map(lambda x: x.cpu() if isinstance(x, torch.Tensor) else x, inputs)
        self.data, self.options, self.before, self.recalibrate = data, options, before, recalibrate

    def settle(self, searched: Searched, again: Callable[[Groups], Searched]) -> Settled:
        """Find a cut that holds, prove it, and check once more what was cut in another way than first assumed.

        Args:
            again: searches over a narrower analysis, when sizes written into the code keep channels from going.
        """
        searched, check, back = self.back_off(searched)
        while True:
            latest = searched
            fitted = fit(self.home, self.inputs, searched.groups, self.chooser(searched, again))
            searched = self.found if self.found is not None else searched
            if check is not None and fitted.plan.tier == 1 and searched is latest:
                return Settled(fitted, searched, replace(check, backed_off=back))
            check = self.check(fitted.model, searched)
            shorter = searched.cut.shorter(back + 1) if check.holds is False and self.options.target is None else None
            if shorter is None:
                return Settled(fitted, searched, replace(check, backed_off=back))
            searched, back = replace(searched, cut=shorter), back + 1

    def chooser(self, first: Searched, again: Callable[[Groups], Searched]) -> Callable[[Groups], ChannelsPlan]:
        """Plans for `fit`: the search's own choice, and new searches for narrower analyses; `found` is the last."""
        self.found: Searched | None = None

        def choose(groups: Groups) -> ChannelsPlan:
            self.found = first if groups is first.groups else again(groups)
            return plan_of(groups, self.found.cut.removal, self.options)

        return choose

    def back_off(self, searched: Searched) -> tuple[Searched, FinalCheck | None, int]:
        """Give channels back until the bounds hold, unless a cost target is the goal; None where a cut does not run."""
        back = 0
        while True:
            small = self.quick(searched)
            check = None if small is None else self.check(small, searched)
            if check is None or check.holds is not False or self.options.target is not None:
                return searched, check, back
            shorter = searched.cut.shorter(back + 1)
            if shorter is None:
                return searched, check, back
            searched, back = replace(searched, cut=shorter), back + 1

    def quick(self, searched: Searched) -> nn.Module | None:
        """A copy with its modules sliced in place, unproved; None where that does not run."""
        small = copy.deepcopy(self.home)
        removal: Chosen = searched.cut.removal
        try:
            if removal:
                cut_(small, plan_of(searched.groups, removal, self.options))
            with torch.no_grad():
                small(*copy.deepcopy(self.inputs))
        except (RuntimeError, ValueError, IndexError):
            return None
        return small

    def check(self, small: nn.Module, searched: Searched) -> FinalCheck:
        """Every task on a cut model, which is not changed."""
        working = copy.deepcopy(small).to(self.device).eval()
        anew = self.recalibrate
        if anew is None or not searched.cut.removal:
            return judge_cut(working, self.data, self.options, self.before, None)
        made = plan_of(searched.groups, searched.cut.removal, self.options)
        return judge_cut(working, self.data, self.options, self.before, lambda cut: anew(cut, made))
