"""The portable decision of channel pruning: which indices of which tensor dims stay, without any tensor.

A plan repeats its cut on every checkpoint of the same architecture: the fingerprint of names and shapes guards it.
Index lists are written as runs "0-3 5 9-12".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pruners.channels.errors import BadChannelsPlan

FORMAT = 1
TIERS = {
    1: "in place: the user's own modules, smaller",
    2: "in place, with size attributes of the user's modules edited",
    3: "in place, with more channels frozen where sizes are written into the code",
    4: "the traced graph with new sizes, on the user's own parameter names",
}


@dataclass(frozen=True, slots=True)
class AttributeEdit:
    """One attribute of a module that holds a size; `old` and `new` are ints or lists of ints."""

    module: str
    name: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class GroupCut:
    """What one group loses.

    Attributes:
        members: (tensor, dim, positions per unit).
        removed: unit indices, ascending.
        macs_saved: by this group alone, on the dense model.
    """

    name: str
    units: int
    removed: tuple[int, ...]
    members: tuple[tuple[str, int, int], ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """Unit indices that stay, ascending."""
        gone = set(self.removed)
        return tuple(unit for unit in range(self.units) if unit not in gone)


@dataclass(frozen=True, slots=True)
class ChannelsPlan:
    """The decision for a whole model.

    Attributes:
        keep: tensor name -> dim -> indices that stay, ascending; tensors not named stay whole.
        shapes: tensor name -> shape before, for every tensor that is cut.
        tied: names of one tensor each.
        frozen: (reason, tensors, channels) summary of what could not go.
        warnings: what the user should know.
        graph: for tier 4: mode, input example and hash of the traced graph.
        proved: whether a cut by this plan has passed its proofs (`fit`); `apply_` tries the others on a copy first.
    """

    fingerprint: str
    architecture: str
    groups: tuple[GroupCut, ...]
    keep: Mapping[str, Mapping[int, tuple[int, ...]]]
    shapes: Mapping[str, tuple[int, ...]]
    tied: tuple[tuple[str, ...], ...]
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    tier: int = 1
    attributes: tuple[AttributeEdit, ...] = ()
    scales: tuple[tuple[str, float], ...] = ()
    constraints: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    entries: tuple[str, ...] = ()
    frozen: tuple[tuple[str, int, int], ...] = ()
    not_zeroing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    graph: Mapping[str, Any] | None = None
    proved: bool = False

    method = "channels"

    def removed(self, tensor: str, dim: int) -> tuple[int, ...]:
        """Indices of a tensor dim that go."""
        kept = self.keep.get(tensor, {}).get(dim)
        if kept is None:
            return ()
        stay = set(kept)
        return tuple(index for index in range(self.shapes[tensor][dim]) if index not in stay)

    @property
    def units_removed(self) -> int:
        """How many units go."""
        return sum(len(group.removed) for group in self.groups)

    def explain(self) -> list[str]:
        """MACs and parameters before and after, one line per cut group, what stays and why, how it is done."""
        lines = [_account("MACs", self.macs_before, self.macs_after)] if self.macs_before else []
        lines.append(_account("parameters", self.params_before, self.params_after))
        lines += [
            f"{cut.name}: {cut.units} -> {len(cut.kept)} channels ({len(cut.members)} tensors)"
            for cut in self.groups
            if cut.removed
        ]
        lines += [f"stays: {count:,} channels in {tensors} tensors: {text}" for text, tensors, count in self.frozen]
        lines += [f"{edit.module}.{edit.name}: {edit.old} -> {edit.new}" for edit in self.attributes]
        lines += list(self.constraints)
        lines.append(f"tier {self.tier}: {TIERS[self.tier]}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able data; `from_dict` reads it back."""
        return {
            "method": self.method,
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "architecture": self.architecture,
            "tier": self.tier,
            "params_before": self.params_before,
            "params_after": self.params_after,
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "groups": [
                {
                    "name": cut.name,
                    "units": cut.units,
                    "removed": to_runs(cut.removed),
                    "members": [list(member) for member in cut.members],
                }
                for cut in self.groups
            ],
            "keep": {
                name: {
                    "shape": list(self.shapes[name]),
                    "dims": {str(dim): to_runs(kept) for dim, kept in dims.items()},
                }
                for name, dims in self.keep.items()
            },
            "tied": [list(names) for names in self.tied],
            "attributes": [[edit.module, edit.name, edit.old, edit.new] for edit in self.attributes],
            "scales": [list(scale) for scale in self.scales],
            "constraints": list(self.constraints),
            "options": dict(self.options),
            "entries": list(self.entries),
            "frozen": [list(item) for item in self.frozen],
            "not_zeroing": list(self.not_zeroing),
            "warnings": list(self.warnings),
            "graph": None if self.graph is None else dict(self.graph),
            "proved": self.proved,
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ChannelsPlan:
        """Read what `to_dict` wrote.

        Raises:
            BadChannelsPlan: another method or format, or missing or malformed entries.
        """
        if document.get("method") != cls.method:
            raise BadChannelsPlan(f"its method is {document.get('method')!r}")
        if document.get("format") != FORMAT:
            raise BadChannelsPlan(f"its format is {document.get('format')!r}, this version reads {FORMAT}")
        try:
            return cls._read(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadChannelsPlan(f"{type(error).__name__} at {error}") from error

    @classmethod
    def _read(cls, document: Mapping[str, Any]) -> ChannelsPlan:
        keep = document["keep"]
        return cls(
            fingerprint=str(document["fingerprint"]),
            architecture=str(document["architecture"]),
            groups=tuple(
                GroupCut(
                    str(cut["name"]),
                    int(cut["units"]),
                    tuple(from_runs(cut["removed"])),
                    tuple((str(name), int(dim), int(count)) for name, dim, count in cut["members"]),
                )
                for cut in document["groups"]
            ),
            keep={
                str(name): {int(dim): tuple(from_runs(runs)) for dim, runs in item["dims"].items()}
                for name, item in keep.items()
            },
            shapes={str(name): tuple(int(size) for size in item["shape"]) for name, item in keep.items()},
            tied=tuple(tuple(names) for names in document["tied"]),
            params_before=int(document["params_before"]),
            params_after=int(document["params_after"]),
            macs_before=int(document["macs_before"]),
            macs_after=int(document["macs_after"]),
            tier=int(document["tier"]),
            attributes=tuple(AttributeEdit(*edit) for edit in document["attributes"]),
            scales=tuple((str(name), float(value)) for name, value in document["scales"]),
            constraints=tuple(document["constraints"]),
            options=dict(document["options"]),
            entries=tuple(document["entries"]),
            frozen=tuple((str(text), int(a), int(b)) for text, a, b in document["frozen"]),
            not_zeroing=tuple(document["not_zeroing"]),
            warnings=tuple(document["warnings"]),
            graph=document["graph"],
            proved=bool(document.get("proved", True)),  # plans without the entry were written after their proofs
        )


def to_runs(indices: Iterable[int]) -> str:
    """Write ascending indices as runs: [0, 1, 2, 5] is "0-2 5"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return " ".join(f"{a}-{b}" if a != b else str(a) for a, b in runs)


def from_runs(text: str) -> Sequence[int]:
    """Read what `to_runs` wrote."""
    return list(_expand(text))


def _expand(text: str) -> Iterator[int]:
    for run in text.split():
        first, _, last = run.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _account(what: str, before: int, after: int) -> str:
    return f"{what}: {before:,} -> {after:,} ({after / max(before, 1):.1%})"
