"""Values that carry channel identities, and the two things that happen to them: unions and the tie.

A plane is a vector of ids along one dim of a value: which atom each index of that dim descends from. A value has at
most one plane per dim; a dim without a plane holds nothing that can be removed (image channels, tokens, batch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruners.channels.labels import RESERVED, Ids, Labels, Reason

Planes = Mapping[int, Ids]

UNTAGGED = "an operand without channels to follow"
UNTAGGED_INPUT = "an input without channels to follow"
UNTAGGED_WEIGHT = "a weight without channels to follow"
"""Why channels stay that meet a dim without a plane."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the traced program: its static shape and the planes of its dims.

    Attributes:
        remains: of a tensor that was cut: dims of which one index is left, which have no plane any more. Read where one
            index alone means something else (a grouped convolution, then, looks like a depthwise one).
    """

    shape: tuple[int, ...]
    planes: Planes = field(default_factory=dict)
    remains: Planes = field(default_factory=dict)

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return len(self.shape)

    def plane(self, dim: int) -> Ids | None:
        """The ids along a dim (negative dims count from the end), None without any."""
        return self.planes.get(dim % self.ndim) if self.shape else None

    def all_ids(self) -> list[Ids]:
        """Every plane of the value."""
        return list(self.planes.values())


class Scope:
    """What a rule may do: unite, freeze and make ids; knows the operator at work.

    Attributes:
        first_buffer: ids from here on belong to no parameter.
        rows: module -> (rows that it gets in use, rows that it gets in the trace), where the two differ.
        lenient: dims of size 1 may have lost their plane (in a model that was cut), which is no reason to freeze.
    """

    def __init__(
        self,
        labels: Labels,
        first_buffer: int,
        rows: Mapping[str, tuple[int, int]] = MappingProxyType({}),
        *,
        lenient: bool = False,
    ) -> None:
        self.labels = labels
        self.rows = rows
        self.lenient = lenient
        self.first_buffer = first_buffer
        self.operator = ""
        self.source = ""

    def reason(self, text: str) -> Reason:
        """A reason at the operator at work."""
        return Reason(text, self.operator, self.source)

    def freeze(self, ids: Ids | None, text: str) -> None:
        """Forbid the removal of these ids."""
        if ids is not None and ids.size:
            self.labels.freeze(ids, self.reason(text))

    def freeze_value(self, value: object, text: str) -> None:
        """Freeze every plane of a value, or of all values in a list; other objects are passed over."""
        if isinstance(value, Value):
            for ids in value.all_ids():
                self.freeze(ids, text)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self.freeze_value(item, text)
        elif isinstance(value, dict):
            for item in value.values():
                self.freeze_value(item, text)

    def unite(self, left: Ids, right: Ids) -> None:
        """Remove these pairs together from now on."""
        self.labels.unite(left, right)

    def pair(self, left: Ids | None, right: Ids | None, missing: str) -> Ids | None:
        """Unite two vectors; with one missing, freeze the other and give `missing` as its reason."""
        if left is not None and right is not None:
            self.unite(left, right)
            return left
        self.freeze(left, missing)
        self.freeze(right, missing)
        return left if left is not None else right

    def pair_all(self, vectors: Sequence[Ids | None], missing: str) -> Ids | None:
        """Unite many vectors of one length; if any is missing, freeze all others."""
        known = [vector for vector in vectors if vector is not None]
        for other in known[1:]:
            self.unite(known[0], other)
        if known and len(known) < len(vectors):
            self.freeze(known[0], missing)
        return known[0] if known else None

    def untagged(self, size: int, text: str) -> Ids:
        """A plane for a dim that has none: ids that freeze whatever they meet."""
        if self.lenient and size == 1:
            return self.labels.fresh(1)
        return np.full(size, self.labels.reason_id(self.reason(text)), np.int64)

    def removable(self, ids: Ids) -> int:
        """How many distinct classes with a parameter could be removed from a vector."""
        roots = np.unique(self.labels.find(ids))
        return int(((roots >= RESERVED) & (roots < self.first_buffer)).sum())

    def tie(self, places: Tensor, table: Ids) -> dict[int, Ids]:
        """Make a field of ids vary along one dim only, uniting along all others.

        Kept is, among the dims along which the place varies, the one where classes differ; of several, the one whose
        first row holds most removable classes, on equality the last.

        Args:
            places: integer tensor of the value's shape that says which element of `table` stands where.
            table: ids, one for every index that went into the operator.

        Returns:
            The plane by its dim; empty when the field has one place only (its id is then frozen: no dim could carry
            it, unless the model was cut, where a dim of size 1 is all that was left).
        """
        if places.numel() == 0:
            return {}
        varying = _varying(places)
        if not varying:
            if not self.lenient:
                self.freeze(table[places.flatten()[:1].numpy()], "position-bound operator")
            return {}
        for dim in range(places.dim()):
            if dim not in varying:
                places = places.narrow(dim, 0, 1)
        ids = torch.from_numpy(table[places.numpy()])
        if len(varying) > 1:
            # dims along which only tied ids differ are no choice any more
            classes = torch.from_numpy(self.labels.find(np.ascontiguousarray(ids.numpy())))
            varying = _varying(classes) or varying
        best = varying[0]
        if len(varying) > 1:
            counts = [self.removable(_first_row(ids, dim)) for dim in varying]
            best = max(zip(counts, varying, strict=True))[1]
        rows: Ids = ids.movedim(best, 0).reshape(ids.shape[best], -1).numpy()  # (size, other positions)
        if rows.shape[1] > 1:
            others = np.unique(rows[:, 1:], axis=1)
            self.unite(np.repeat(rows[:, 0], others.shape[1]), others.reshape(-1))
        return {best: np.ascontiguousarray(rows[:, 0])}

    def merge(self, found: Sequence[Mapping[int, Ids]]) -> dict[int, Ids]:
        """Join planes that came from several planes of one value; two on one dim: the smaller choice is frozen."""
        planes: dict[int, Ids] = {}
        for each in found:
            for dim, ids in each.items():
                other = planes.get(dim)
                if other is None:
                    planes[dim] = ids
                elif not np.array_equal(other, ids):
                    small, large = sorted((other, ids), key=self.removable)
                    self.freeze(small, "two channel dims merge into one")
                    planes[dim] = large
        return planes


def _varying(ids: Tensor) -> list[int]:
    return [
        dim
        for dim, size in enumerate(ids.shape)
        if size > 1 and bool((ids.narrow(dim, 1, size - 1) != ids.narrow(dim, 0, 1)).any())
    ]


def _first_row(ids: Tensor, dim: int) -> Ids:
    index: list[Any] = [0] * ids.dim()
    index[dim] = slice(None)
    row: Ids = ids[tuple(index)].numpy()
    return row


def spread(shape: Sequence[int], dim: int, first: int = 0) -> Tensor:
    """Number the indices of a dim from `first` on, as a tensor of the whole shape (expanded, not copied)."""
    view = [1] * len(shape)
    view[dim] = -1
    return torch.arange(first, first + shape[dim]).view(view).expand(tuple(shape))


def spread_all(values: Sequence[Value], vectors: Sequence[Ids], dim: int) -> tuple[list[Tensor], Ids]:
    """Number the indices of one dim of several values one after the other; returns the fields and the ids' table."""
    fields, first = [], 0
    for value, ids in zip(values, vectors, strict=True):
        fields.append(spread(value.shape, dim, first))
        first += len(ids)
    return fields, np.concatenate(vectors)
