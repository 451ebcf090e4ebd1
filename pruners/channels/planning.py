"""From chosen units to a `ChannelsPlan`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pruners.channels.cost import CostModel
from pruners.channels.errors import BadChannelOptions
from pruners.channels.groups import Groups
from pruners.channels.labels import Ids
from pruners.channels.not_zeroing import changed_operators
from pruners.channels.plan_type import ChannelsPlan, GroupCut
from pruners.channels.planes import Value

Removed = Mapping[int, Iterable[int]]
"""Group index -> unit indices that go."""


def make_plan(
    groups: Groups, removed: Mapping[str, Iterable[int]] | Removed, options: Mapping[str, Any] | None = None
) -> ChannelsPlan:
    """Write down the removal of these units.

    Args:
        removed: unit indices by group name or by group index; groups not named stay whole.

    Raises:
        BadChannelOptions: an unknown group or unit.
    """
    chosen = _by_index(groups, removed)
    cost = CostModel(groups)
    before = (cost.params, cost.macs)
    for place, units in chosen.items():
        for unit in units:
            cost.remove(place, unit)
    gone = removed_roots(groups, chosen)
    keep = kept_indices(groups, gone)
    slots = groups.atoms.by_name
    tied = tuple((slot.name, *slot.aliases) for slot in groups.atoms.slots if slot.aliases and slot.name in keep)
    return ChannelsPlan(
        fingerprint=groups.fingerprint,
        architecture="",
        groups=tuple(
            GroupCut(
                group.name,
                group.units,
                tuple(chosen.get(place, ())),
                tuple((member.tensor, member.dim, int(member.index.shape[1])) for member in group.members),
            )
            for place, group in enumerate(groups.groups)
        ),
        keep=keep,
        shapes={name: slots[name].shape for name in keep},
        tied=tied,
        params_before=before[0],
        params_after=cost.params,
        macs_before=before[1],
        macs_after=cost.macs,
        options={**groups.options, **(options or {})},
        entries=tuple(f"{entry.mode}({', '.join(entry.shapes())})" for entry in groups.entries),
        frozen=frozen_summary(groups),
        not_zeroing=tuple(changed_operators(groups, gone)),
        warnings=tuple(f"not analysed: {text}" for text in groups.refused),
    )


def _by_index(groups: Groups, removed: Mapping[Any, Iterable[int]]) -> dict[int, tuple[int, ...]]:
    names = {group.name: place for place, group in enumerate(groups.groups)}
    chosen: dict[int, tuple[int, ...]] = {}
    for key, units in removed.items():
        place = names.get(key, -1) if isinstance(key, str) else int(key)
        if not 0 <= place < len(groups.groups):
            raise BadChannelOptions(f"there is no group {key!r}")
        listed = tuple(sorted({int(unit) for unit in units}))
        if listed and not (listed[0] >= 0 and listed[-1] < groups.groups[place].units):
            raise BadChannelOptions(f"group {key!r} has {groups.groups[place].units} channels, not {listed[-1] + 1}")
        if listed:
            chosen[place] = listed
    return chosen


def removed_roots(groups: Groups, chosen: Mapping[int, Sequence[int]]) -> Ids:
    """The classes of the chosen units."""
    parts = [groups.groups[place].roots[list(units)] for place, units in chosen.items()]
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def kept_indices(groups: Groups, gone: Ids) -> dict[str, dict[int, tuple[int, ...]]]:
    """Tensor -> dim -> indices that stay, for every dim that loses some."""
    keep: dict[str, dict[int, tuple[int, ...]]] = {}
    for slot in groups.atoms.slots:
        for dim in slot.starts:
            stays = ~np.isin(groups.labels.find(slot.ids(dim)), gone)
            if not stays.all():
                keep.setdefault(slot.name, {})[dim] = tuple(np.flatnonzero(stays).tolist())
    return keep


def kept_values(groups: Groups, plan: ChannelsPlan) -> dict[str, Value]:
    """Every tensor of the cut model with the ids of the channels it still holds."""
    values = {}
    for name, slot in groups.atoms.by_name.items():
        keep = plan.keep.get(slot.name, {})
        planes = {dim: slot.ids(dim)[list(keep[dim])] if dim in keep else slot.ids(dim) for dim in slot.starts}
        shape = tuple(len(planes[dim]) if dim in planes else size for dim, size in enumerate(slot.shape))
        several, single = (
            {dim: ids for dim, ids in planes.items() if (len(ids) > 1) == more} for more in (True, False)
        )
        values[name] = Value(shape, several, single)
    return values


def frozen_summary(groups: Groups) -> tuple[tuple[str, int, int], ...]:
    """(reason, tensors, channels) over all frozen dims, most tensors first."""
    found: dict[str, list[int]] = {}
    for item in groups.frozen:
        found.setdefault(str(item.reason), []).append(item.count)
    listed = [(text, len(counts), sum(counts)) for text, counts in found.items()]
    return tuple(sorted(listed, key=lambda item: (-item[1], item[0])))
