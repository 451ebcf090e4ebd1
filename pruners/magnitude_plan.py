"""The portable decision of magnitude pruning: per tensor a threshold and counts, no weights.

A tensor loses all magnitudes below its threshold and, in row-major order, the first `ties_taken` of those equal to
it. Thresholds are written as shortest decimal text that reads back to the same number, so a plan that went through
JSON cuts the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from pruners.candidates import Skipped
from pruners.errors import BadPlan, PlanMismatch
from pruners.magnitude_options import MagnitudeOptions, Scope, Score
from pruners.schedules import Schedule, schedule_from_dict

SCHEMA_VERSION = 1
METHOD = "magnitude"


@dataclass(frozen=True, slots=True)
class Cut:
    """What one tensor loses, and the structure it was planned for."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    numel: int
    zeros_before: int
    zeros_after: int
    threshold: float
    ties: int
    ties_taken: int
    aliases: tuple[str, ...] = ()

    @property
    def density(self) -> float:
        """Share of non-zeros after the cut."""
        return 1 - self.zeros_after / self.numel

    @property
    def removed(self) -> int:
        """Weights that become zero."""
        return self.zeros_after - self.zeros_before


@dataclass(frozen=True, slots=True)
class MagnitudePlan:
    """Which weights become zero.

    Attributes:
        sparsity: as asked, a decimal text; with a gradual schedule the final one.
        weights: number N of ranked weights.
        zeros_asked: k of the cuts, floor(s * N + 1/2).
        zeros_before: zeros among the ranked weights when the plan was made.
        floor: weights that every tensor keeps at least, as asked; `floor_count` is the number.
        threshold: the one threshold of all tensors above their floor (scope global, score magnitude), else None.
        fingerprint: checksum over samples of the weights that stay.
        schedule: how training reaches `sparsity`; None means at once.
    """

    sparsity: str
    scope: Scope
    score: Score
    floor: str
    floor_count: int
    weights: int
    zeros_asked: int
    zeros_before: int
    threshold: float | None
    cuts: tuple[Cut, ...]
    left_out: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    fingerprint: int
    schedule: Schedule | None = None

    @property
    def zeros_after(self) -> int:
        """Zeros among the ranked weights after the cuts."""
        return sum(cut.zeros_after for cut in self.cuts)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the ranked tensors, in order."""
        return tuple(cut.name for cut in self.cuts)

    def options_at(self, sparsity: float | str) -> MagnitudeOptions:
        """Return the same options at another sparsity, for a gradual schedule."""
        return MagnitudeOptions(str(sparsity), self.scope, self.score, self.floor)

    def applies_to(self, tensors: Mapping[str, Tensor]) -> None:
        """Check names, shapes, element types and ties of names.

        Raises:
            PlanMismatch: listing every difference.
        """
        problems = tuple(problem for cut in self.cuts for problem in _differences(cut, tensors))
        if problems:
            raise PlanMismatch(problems)

    def explain(self) -> str:
        """Return the plan as lines of text."""
        return "\n".join(_lines(self))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able document."""
        document: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "method": METHOD}
        document |= {item.name: getattr(self, item.name) for item in fields(self)}
        document["cuts"] = [asdict(cut) | {"shape": list(cut.shape), "aliases": list(cut.aliases)} for cut in self.cuts]
        document["left_out"] = [asdict(item) for item in self.left_out]
        document["warnings"] = list(self.warnings)
        document["schedule"] = None if self.schedule is None else self.schedule.to_dict()
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> MagnitudePlan:
        """Read what `to_dict` wrote.

        Raises:
            BadPlan: another method or version, or fields missing, unknown or of the wrong kind.
        """
        if document.get("method") != METHOD:
            raise BadPlan(f"its method is {document.get('method')!r}")
        if document.get("schema_version") != SCHEMA_VERSION:
            raise BadPlan(f"schema version {document.get('schema_version')!r}; this release reads {SCHEMA_VERSION}")
        values = {key: value for key, value in document.items() if key not in ("method", "schema_version")}
        try:
            values["cuts"] = tuple(_cut(item) for item in values["cuts"])
            values["left_out"] = tuple(Skipped(**item) for item in values["left_out"])
            values["warnings"] = tuple(values["warnings"])
            if values.get("schedule") is not None:
                values["schedule"] = schedule_from_dict(values["schedule"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise BadPlan(f"{type(error).__name__}: {error}") from error


def _cut(document: Mapping[str, Any]) -> Cut:
    values = dict(document)
    values["shape"], values["aliases"] = tuple(values["shape"]), tuple(values["aliases"])
    return Cut(**values)


def dtype_name(tensor: Tensor) -> str:
    """Return `float32` for torch.float32."""
    return str(tensor.dtype).removeprefix("torch.")


def _differences(cut: Cut, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    tensor = tensors.get(cut.name)
    if tensor is None:
        yield f"{cut.name} is missing"
        return
    if tuple(tensor.shape) != cut.shape:
        yield f"{cut.name} has shape {tuple(tensor.shape)}, planned for {cut.shape}"
    if dtype_name(tensor) != cut.dtype:
        yield f"{cut.name} is {dtype_name(tensor)}, planned for {cut.dtype}"
    for alias in cut.aliases:
        other = tensors.get(alias)
        if other is not None and other.data_ptr() != tensor.data_ptr():
            yield f"{alias} was the same tensor as {cut.name}, now it is a copy"


def _lines(plan: MagnitudePlan) -> Iterator[str]:
    """Yield the text of `explain`: the totals, one line per tensor, what was left out, and the warnings."""
    rule = {"magnitude": "magnitude", "lamp": "LAMP score", "erk": "magnitude, Erdos-Renyi-Kernel densities"}
    yield (
        f"{plan.weights:,} weights in {len(plan.cuts)} tensors ranked by {rule[plan.score]} ({plan.scope});"
        f" sparsity asked {plan.sparsity}"
    )
    at = "" if plan.threshold is None else f", threshold {plan.threshold:.8g}"
    yield (
        f"zeros: {plan.zeros_before:,} before, {plan.zeros_asked:,} asked, {plan.zeros_after:,} after"
        f" ({plan.zeros_after / plan.weights:.4%}){at}; floor {plan.floor_count:,} per tensor"
    )
    for cut in plan.cuts:
        same = f" (also {', '.join(cut.aliases)})" if cut.aliases else ""
        left = f"{cut.numel - cut.zeros_before:,} -> {cut.numel - cut.zeros_after:,} non-zero"
        yield f"{cut.name}: {left}, density {cut.density:.2%}{same}"
    yield from (f"left out {item.name}: {item.reason}" for item in plan.left_out)
    if plan.schedule is not None:
        yield f"schedule: {plan.schedule.to_dict()}"
    yield from (f"warning: {text}" for text in plan.warnings)
