"""Tier 3: more channels frozen or tied where the code holds their number, and a new selection."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from pruners.channels.calls import Call
from pruners.channels.errors import SurgeryFailed
from pruners.channels.groups import Groups, find_groups
from pruners.channels.labels import RESERVED, Ids, Labels, Reason
from pruners.channels.plan_type import ChannelsPlan
from pruners.channels.planes import Value
from pruners.channels.surgery import cut_
from pruners.channels.tracing import Mode, frames_of, mode_of, quiet, source_line

_SIZED = ("view", "_unsafe_view", "reshape", "expand", "unflatten", "repeat", "zeros", "ones", "full", "new_zeros")
_CUT = ("slice", "slice_scatter", "split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split")


@dataclass(frozen=True, slots=True)
class Constrained:
    """An analysis with constraints, the plan chosen under it, and what was constrained."""

    groups: Groups
    plan: ChannelsPlan
    log: tuple[str, ...]


def constrained(
    model: nn.Module, inputs: Sequence[Any], state: Constrained, choose: Callable[[Groups], ChannelsPlan]
) -> Constrained:
    """Freeze channels behind sizes in the code near the place where the cut model fails, and choose again.

    Raises:
        SurgeryFailed: nothing is left to constrain.
    """
    labels = state.groups.labels.copy()
    found = list(_tie_chunks(state.groups, labels))
    if not found:
        lines = failing_lines(model, state.plan, inputs, state.groups)
        found = list(_freeze_sizes(state.groups, labels, lines)) if lines else []
        found = found or list(_freeze_sizes(state.groups, labels, None))
        found = found or list(_freeze_sizes(state.groups, labels, lines, everything=True))
    if not found:
        raise SurgeryFailed(3, "no size in the code explains the failure")
    groups = replace(state.groups, labels=labels, groups=find_groups(state.groups.atoms, labels))
    log = (*state.log, *(text for text in dict.fromkeys(found) if text not in state.log))
    return Constrained(groups, choose(groups), log)


def failing_lines(model: nn.Module, plan: ChannelsPlan, inputs: Sequence[Any], groups: Groups) -> set[tuple[str, int]]:
    """(file, line) of every frame under the model's forward where the cut model raises; empty when it runs."""
    small = copy.deepcopy(model)
    cut_(small, plan)
    for entry in groups.entries:
        error = run_error(small, entry.args, entry.mode)
        if error is not None:
            return {(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)}
    return set()


def run_error(model: nn.Module, inputs: Sequence[Any], mode: Mode = "eval") -> Exception | None:
    """What a forward raises, if anything."""
    try:
        with torch.no_grad(), quiet(), mode_of(model, mode), torch.random.fork_rng(devices=[]):
            model(*copy.deepcopy(tuple(inputs)))
    except Exception as error:
        return error
    return None


def _tie_chunks(groups: Groups, labels: Labels) -> Iterator[str]:
    """Equal parts of one tensor lose the same channels; yields what was done."""
    for trace in groups.traces:
        for call in trace.calls.values():
            key = call.key.removeprefix("aten::")
            if key in ("split", "chunk", "unsafe_chunk", "split_with_sizes") and _tie_parts(groups, labels, call):
                yield f"parts of {key} lose the same channels ({source_line(call.node)})"


def _freeze_sizes(
    groups: Groups, labels: Labels, lines: set[tuple[str, int]] | None, *, everything: bool = False
) -> Iterator[str]:
    """Freeze what operators on these lines (None: on all) write down as numbers; yields what was done.

    Args:
        everything: freeze all channels of any operator on these lines.
    """
    for trace in groups.traces:
        for name, call in trace.calls.items():
            frames = frames_of(call.node.meta.get("stack_trace") or "")
            if lines is not None and not (frames and set(frames[-1:]) & lines):
                continue
            key, source = call.key.removeprefix("aten::"), source_line(call.node)
            ids = list(_bound_ids(key, call, trace.values[name], everything))
            free = [vector for vector in ids if bool((labels.find(vector) >= RESERVED).any())]
            for vector in free:
                labels.freeze(vector, Reason("size in the code", key, source))
            if free:
                yield f"frozen behind a size in the code: {key} ({source})"


def _tie_parts(groups: Groups, labels: Labels, call: Call) -> bool:
    """Equal parts of a chunk lose the same indices; True when that is a new constraint."""
    value = call.value("self")
    dim = int(call.args.get("dim") or 0) % value.ndim
    ids = value.planes.get(dim)
    shapes = {shape[dim] for shape in call.shapes}
    if ids is None or len(shapes) != 1 or len(call.shapes) < 2:
        return False
    rows = ids.reshape(len(call.shapes), -1)
    before = labels.find(ids).copy()
    for row in rows[1:]:
        labels.unite(rows[0], row)
    return not np.array_equal(before, labels.find(ids))


def _bound_ids(key: str, call: Call, result: Any, near: bool) -> Iterator[Ids]:
    """The planes whose sizes an operator writes down; `near` the failure, those of any operator."""
    if key in _SIZED and isinstance(result, Value):
        yield from result.all_ids()
    elif key in _CUT:
        dim = int(call.args.get("dim") or 0)
        ids = call.value("self").plane(dim)
        if ids is not None:
            yield ids
    elif key in ("pad", "constant_pad_nd") and isinstance(result, Value):
        for dim, ids in result.planes.items():
            if result.shape[dim] != call.value("self").shape[dim]:
                yield np.setdiff1d(ids, call.value("self").planes[dim])
    elif near:
        for value in call.values():
            yield from value.all_ids()
