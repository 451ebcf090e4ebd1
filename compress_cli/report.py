"""`RunReport`: the measured facts of one run. All that renderers and gates see.

Every number comes from an artifact: zeros counted in the written file, MACs from a trace of the compressed model,
bytes from the disk, latency from a run, accuracy from an evaluation. Sections that a run had no means for are None,
and `notes` says which flag would have given the means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Achieved:
    """A budget as it was asked for and as it was found in the written file.

    Attributes:
        name: `sparsity`, `params`, `macs`, `size` or `latency`.
        asked: as typed; `asked_count` is the number it stands for.
        count: what was found; `out_of` is the original's number.
        exact: whether the count is to be hit (sparsity); otherwise it is an upper limit.
    """

    name: str
    asked: str
    asked_count: int
    count: int
    out_of: int
    exact: bool = True

    @property
    def met(self) -> bool:
        """Whether what was found is what was asked for."""
        return self.count == self.asked_count if self.exact else self.count <= self.asked_count

    @property
    def share(self) -> float:
        """Achieved share, 0 to 1."""
        return self.count / self.out_of if self.out_of else 0.0


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One weight tensor, or one layer, before and after, counted in the files.

    Attributes:
        shape, weights, zeros_before: of the original.
        zeros_after: zeros among the weights that are left.
        weights_after: stored weights after the run; None when their number did not change.
        change: what became of the layer, in words; empty when zeros tell it all.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    zeros_before: int
    zeros_after: int
    weights_after: int | None = None
    change: str = ""

    @property
    def density(self) -> float:
        """Share of the original's weights that are stored and not zero after the run."""
        left = self.weights if self.weights_after is None else self.weights_after
        return (left - self.zeros_after) / self.weights if self.weights else 0.0


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One task's metric at each stage of the run; `scores` and `losses` map stage name to value."""

    name: str
    metric: str
    unit: str
    higher_is_better: bool
    samples: int
    scores: Mapping[str, float]
    losses: Mapping[str, float]

    def drop(self) -> float | None:
        """How much the metric got worse from the original to what is shipped, in the metric's own unit."""
        if "original" not in self.scores or self.shipped is None:
            return None
        change = self.scores["original"] - self.shipped
        return change if self.higher_is_better else -change

    @property
    def shipped(self) -> float | None:
        """The metric of the written ONNX file where its weights were changed, else of `model.pt`."""
        return self.scores.get("shipped", self.scores.get("final"))


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of the run folder (or the original's), with its size as it is and gzipped."""

    role: str
    name: str
    bytes: int
    gzip_bytes: int | None


@dataclass(frozen=True, slots=True)
class Gate:
    """One limit and whether it held; `passed` is None when the quantity was not measured."""

    name: str
    level: str
    limit: str
    value: float | None
    bound: float | None
    unit: str
    passed: bool | None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunReport:
    """Everything that was asked, done and measured in one run."""

    command: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    method: str
    folder: str
    achieved: tuple[Achieved, ...]
    layers: tuple[LayerRow, ...]
    skipped: tuple[Skipped, ...]
    complexity_before: Mapping[str, Any] | None = None
    complexity_after: Mapping[str, Any] | None = None
    tasks: tuple[TaskRow, ...] = ()
    data: Mapping[str, Any] | None = None
    proof: Mapping[str, Any] | None = None
    recovery: Mapping[str, Any] | None = None
    batchnorm: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    export: Mapping[str, Any] | None = None
    verification: Mapping[str, Any] | None = None
    packing: Mapping[str, Any] | None = None
    latency: Mapping[str, Any] | None = None
    predictions: tuple[Mapping[str, Any], ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    gates: tuple[Gate, ...] = ()
    steps: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def ok(self) -> bool:
        """Whether every gate of level `error` was checked and passed."""
        return all(gate.passed is True for gate in self.gates if gate.level == "error")

    def to_dict(self) -> dict[str, Any]:
        """The JSON document: `schema_version` and `ok` first."""
        from compress_cli.rundir import finite

        document = {"schema_version": self.schema_version, "ok": self.ok, **dataclasses.asdict(self)}
        result: dict[str, Any] = finite(document)
        return result

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RunReport:
        """Read a `report.json` back."""
        rows: dict[str, Any] = {
            "achieved": Achieved,
            "layers": LayerRow,
            "skipped": Skipped,
            "tasks": TaskRow,
            "artifacts": Artifact,
            "gates": Gate,
        }
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in document.items() if name in known}
        for name, row in rows.items():
            values[name] = tuple(_row(row, item) for item in values.get(name, ()))
        for name in ("warnings", "notes", "steps", "predictions"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


def _row(kind: Any, item: Mapping[str, Any]) -> Any:
    """One row of a report; lists become tuples again, fields of other versions are dropped."""
    known = {f.name for f in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in item.items() if k in known})
