"""Units and groups of a model: what must be removed together, what may be, and why the rest may not."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from torch import nn

from pruners.channels.atoms import Atoms, Slot, collect
from pruners.channels.detectors import BOXES, head_rows, is_detector, traceable
from pruners.channels.errors import CannotTrace
from pruners.channels.labels import RESERVED, Ids, Labels, Reason
from pruners.channels.planes import Scope
from pruners.channels.propagate import Trace, propagate, read_graph
from pruners.channels.tracing import Entry, entries_of
from pruners.patterns import check_patterns, matches


@dataclass(frozen=True, slots=True)
class Member:
    """One tensor dim that a group cuts.

    Attributes:
        index: (units, positions): which indices of the dim each unit owns.
    """

    tensor: str
    dim: int
    index: Ids


@dataclass(frozen=True, slots=True)
class Group:
    """Units that are cut alike; permuting them leaves the network's function unchanged.

    Attributes:
        name: the first layer that produces these channels.
        roots: the class of each unit, ascending.
        members: every (parameter or buffer, dim, index map), in the module's order.
    """

    name: str
    roots: Ids
    members: tuple[Member, ...]

    @property
    def units(self) -> int:
        """How many there are."""
        return int(self.roots.size)


@dataclass(frozen=True, slots=True)
class Frozen:
    """Channels of one tensor dim that stay, and why."""

    tensor: str
    dim: int
    count: int
    size: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Groups:
    """The analysis of one model; made by `analyse`.

    Attributes:
        frozen: per (tensor, dim) the channels that may not go, kernel dims left out.
        traces: the graphs that were read, the first one in eval mode.
        refused: entries that could not be traced, with the reason.
        fingerprint: of names and shapes.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    atoms: Atoms
    labels: Labels
    traces: tuple[Trace, ...]
    entries: tuple[Entry, ...]
    refused: tuple[str, ...]
    fingerprint: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """All removable units."""
        return sum(group.units for group in self.groups)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the traces, whose graphs cannot be pickled: a decided plan does not need them any more."""
        values = (() if item.name == "traces" else getattr(self, item.name) for item in fields(self))
        return type(self), tuple(values)

    def by_name(self) -> dict[str, Group]:
        """Groups by their unique names."""
        return {group.name: group for group in self.groups}


def analyse(
    model: nn.Module,
    example_inputs: Sequence[Any],
    *,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    entries: Sequence[Entry] = (),
) -> Groups:
    """Find which slices of which tensors must go together; the model is not changed.

    Torchvision's detectors are analysed as their raw heads (`detectors.RawHeads`); the MACs of RoI heads are those of
    the proposals that the example gives.

    Args:
        example_inputs: positional arguments of the forward; their batch is what MACs are counted for.
        ignore: patterns of layers whose tensors keep every index.
        only: patterns of layers; channels that any other layer produces stay.
        entries: ways to run the model instead of its eval and train forward with the example.

    Raises:
        CannotTrace: `torch.export` refuses the eval forward.
        NoMatch: a pattern fits no tensor.
    """
    form, rows = "", dict[str, tuple[int, int]]()
    if is_detector(model):
        form, rows = f"raw heads, {BOXES} boxes an image", head_rows(model, example_inputs)
    model, example_inputs = traceable(model, example_inputs)
    labels = Labels()
    atoms = collect(model, labels)
    check_patterns([*ignore, *only], list(atoms.by_name))
    scope = Scope(labels, atoms.first_buffer, rows)
    traces, refused, used = _trace_all(model, list(entries) or entries_of(example_inputs), atoms, scope)
    _protect(scope, atoms, ignore, only)
    reached = {atoms.by_name[name].name for trace in traces for name in trace.reached if name in atoms.by_name}
    for slot in atoms.slots:
        why = "not reached by any traced forward" if slot.name not in reached else ""
        why = "shares storage with another tensor" if slot.name in atoms.overlapping else why
        if why:
            _freeze_slot(scope, slot, why)
    _keep_whole_dims(scope, atoms)
    groups = find_groups(atoms, labels)
    return Groups(
        groups=groups,
        frozen=_frozen(atoms, labels),
        atoms=atoms,
        labels=labels,
        traces=tuple(traces),
        entries=tuple(used),
        refused=tuple(refused),
        fingerprint=fingerprint(atoms),
        options={"ignore": list(ignore), "only": list(only), **({"form": form} if form else {})},
    )


def _trace_all(
    model: nn.Module, entries: Sequence[Entry], atoms: Atoms, scope: Scope
) -> tuple[list[Trace], list[str], list[Entry]]:
    traces: list[Trace] = []
    refused: list[str] = []
    used: list[Entry] = []
    tensors = {name: slot.value() for name, slot in atoms.by_name.items()}
    for entry in entries:
        try:
            program = read_graph(model, entry)
        except CannotTrace as error:
            if entry.mode == "eval" or (not traces and entry is entries[-1]):
                raise
            refused.append(str(error))
            continue
        traces.append(propagate(program, entry.mode, tensors, scope))
        used.append(entry)
    return traces, refused, used


def _freeze_slot(scope: Scope, slot: Slot, why: str) -> None:
    scope.operator, scope.source = "", ""
    for dim in slot.starts:
        scope.freeze(slot.ids(dim), why)


def _protect(scope: Scope, atoms: Atoms, ignore: Sequence[str], only: Sequence[str]) -> None:
    scope.operator, scope.source = "", ""
    for slot in atoms.slots:
        names = (slot.name, *slot.aliases)
        if any(matches(pattern, name) for pattern in ignore for name in names):
            _freeze_slot(scope, slot, "protected by the user")
        elif only and slot.kind == "parameter" and len(slot.shape) > 1 and 0 in slot.starts:
            asked = any(matches(pattern, name) for pattern in only for name in names)
            if not asked:
                scope.freeze(slot.ids(0), "not among the layers asked for")


def _keep_whole_dims(scope: Scope, atoms: Atoms) -> None:
    """A class that is a whole dim of some tensor can never go: nothing would be left of it."""
    for slot in atoms.slots:
        for dim in slot.starts:
            roots = scope.labels.find(slot.ids(dim))
            if roots[0] >= RESERVED and bool((roots == roots[0]).all()):
                scope.freeze(slot.ids(dim), "all channels of a dim go together")


def find_groups(atoms: Atoms, labels: Labels) -> tuple[Group, ...]:
    """Collect units with equal signatures {(tensor, dim): positions}, ordered by their first tensor."""
    keys = [(slot, dim) for slot in atoms.slots for dim in slot.starts]
    if not keys:
        return ()
    sizes = [slot.shape[dim] for slot, dim in keys]
    ids = np.concatenate([slot.ids(dim) for slot, dim in keys])
    place = np.repeat(np.arange(len(keys)), sizes)
    index = np.concatenate([np.arange(size) for size in sizes])
    roots = labels.find(ids)
    free = (roots >= RESERVED) & (roots < atoms.first_buffer)
    order = np.lexsort((index[free], place[free], roots[free]))
    roots, place, index = roots[free][order], place[free][order], index[free][order]
    if not roots.size:
        return ()
    starts = np.flatnonzero(np.r_[True, roots[1:] != roots[:-1]])
    ends = np.r_[starts[1:], roots.size]
    units: dict[tuple[tuple[int, int], ...], list[tuple[int, int]]] = {}
    for begin, end in zip(starts.tolist(), ends.tolist(), strict=True):
        counts = Counter(place[begin:end].tolist())
        units.setdefault(tuple(sorted(counts.items())), []).append((begin, end))
    groups, taken = [], Counter[str]()
    for signature, spans in units.items():
        table = np.stack([index[begin:end] for begin, end in spans])
        members, at = [], 0
        for key, count in signature:
            slot, dim = keys[key]
            members.append(Member(slot.name, dim, table[:, at : at + count]))
            at += count
        name = _group_name(members, atoms)
        taken[name] += 1
        unique = name if taken[name] == 1 else f"{name}#{taken[name]}"
        groups.append(Group(unique, roots[[begin for begin, _ in spans]], tuple(members)))
    return tuple(groups)


def _group_name(members: Sequence[Member], atoms: Atoms) -> str:
    """The layer of the first weight whose rows are cut, else the first tensor."""
    for member in members:
        slot = atoms.by_name[member.tensor]
        if slot.kind == "parameter" and len(slot.shape) > 1 and member.dim == 0:
            return member.tensor.rpartition(".")[0] or member.tensor
    return members[0].tensor


def _frozen(atoms: Atoms, labels: Labels) -> tuple[Frozen, ...]:
    found = []
    for slot in atoms.slots:
        for dim in slot.starts:
            if len(slot.shape) > 2 and dim > 1:
                continue
            roots = labels.find(slot.ids(dim))
            roots = roots[roots < RESERVED]
            if roots.size:
                values, counts = np.unique(roots, return_counts=True)
                reason = labels.reason(int(values[counts.argmax()]))
                found.append(Frozen(slot.name, dim, int(roots.size), slot.shape[dim], reason))
    return tuple(found)


def fingerprint(atoms: Atoms) -> str:
    """A hash of all names and shapes: the same for every checkpoint of one architecture."""
    listed = sorted((name, slot.shape) for name, slot in atoms.by_name.items())
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:16]
