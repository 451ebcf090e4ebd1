"""Tier 2: int and tuple attributes of the user's modules that hold a width, found by running the cut model.

Where it raises, the modules on the stack are searched from the inside out for attributes equal to a size that changed;
an edit stays when the model then gets further. Equal numbers are a trap, which is why the proofs decide in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from pruners.channels.constraints import run_error
from pruners.channels.groups import Groups
from pruners.channels.plan_type import AttributeEdit, ChannelsPlan
from pruners.channels.planes import Value
from pruners.channels.planning import removed_roots
from pruners.channels.rewriting import Rewriter
from pruners.channels.tracing import owner_of

FORWARDS = 64
_LEFT_ALONE = ("training", "num_layers", "padding", "stride", "kernel_size", "dilation", "groups")


def repaired(small: nn.Module, plan: ChannelsPlan, groups: Groups, inputs: Sequence[Any]) -> list[AttributeEdit]:
    """Edit attributes of a cut model until it runs; returns the edits, or none when that does not succeed."""
    names = {module: name for name, module in small.named_modules()}
    sizes = changed_sizes(groups, plan)
    edits: list[AttributeEdit] = []
    budget = FORWARDS
    error = run_error(small, inputs)
    while error is not None and budget > 0:
        better = None
        for module in _stack(error, names):
            for edit in _candidates(module, names[module], sizes, edits):
                budget -= 1
                setattr(module, edit.name, edit.new)
                after = run_error(small, inputs)
                if after is None or _depth(after) > _depth(error) or _place(after) != _place(error):
                    better = (edit, after)
                    break
                setattr(module, edit.name, edit.old)
                if budget <= 0:
                    break
            if better or budget <= 0:
                break
        if better is None:
            return []
        edits.append(better[0])
        error = better[1]
    return edits if error is None else []


def changed_sizes(groups: Groups, plan: ChannelsPlan) -> dict[str, dict[int, set[int]]]:
    """Per owning module: old size -> new sizes of the dims that its operators handle."""
    gone = removed_roots(groups, {place: cut.removed for place, cut in enumerate(plan.groups) if cut.removed})
    rewriter = Rewriter(groups, gone)
    found: dict[str, dict[int, set[int]]] = {}
    for trace in groups.traces:
        for name, call in trace.calls.items():
            for value in (*call.values(), trace.values[name]):
                for item in value if isinstance(value, (tuple, list)) else (value,):
                    if not isinstance(item, Value):
                        continue
                    for ids in item.planes.values():
                        left = rewriter.count(ids)
                        if left != len(ids):
                            found.setdefault(owner_of(call.node), {}).setdefault(len(ids), set()).add(left)
    return found


def _stack(error: Exception, names: dict[nn.Module, str]) -> list[nn.Module]:
    """Modules whose code was running, innermost first."""
    found: list[nn.Module] = []
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner in names and owner not in found:
            found.append(owner)
        trace = trace.tb_next
    return found[::-1]


def _depth(error: Exception) -> int:
    depth, trace = 0, error.__traceback__
    while trace is not None:
        depth, trace = depth + 1, trace.tb_next
    return depth


def _place(error: Exception) -> list[tuple[str, int]]:
    found, trace = [], error.__traceback__
    while trace is not None:
        found.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return found


def _candidates(
    module: nn.Module, name: str, sizes: dict[str, dict[int, set[int]]], done: Sequence[AttributeEdit]
) -> Iterator[AttributeEdit]:
    known = {(edit.module, edit.name) for edit in done}
    changes: dict[int, set[int]] = {}
    for owner, found in sizes.items():
        if owner == name or owner.startswith(f"{name}.") or not name:
            for old, new in found.items():
                changes.setdefault(old, set()).update(new)
    for attribute, value in list(vars(module).items()):
        if attribute.startswith("_") or attribute in _LEFT_ALONE or (name, attribute) in known:
            continue
        if isinstance(value, bool):
            continue
        if isinstance(value, int):
            for size in sorted(changes.get(value, ())):
                yield AttributeEdit(name, attribute, value, size)
        elif isinstance(value, (tuple, list)) and value and all(isinstance(item, int) for item in value):
            for place, item in enumerate(value):
                for size in sorted(changes.get(item, ())):
                    yield AttributeEdit(name, attribute, value, (*value[:place], size, *value[place + 1 :]))
