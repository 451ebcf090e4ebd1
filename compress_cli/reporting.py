"""Put a `RunReport` together from the written files and the measurements of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress_cli.checkpoint import read_tensors
from compress_cli.gates import with_gates
from compress_cli.methods.base import Measured
from compress_cli.report import RunReport
from compress_cli.session import command_line
from compress_cli.shipping import Shipment, checkpoint_artifacts
from profilers.machine import describe

if TYPE_CHECKING:
    from compress_cli.checkpoint import LoadedModel
    from compress_cli.methods.base import Method
    from compress_cli.scores import Scores
    from compress_cli.session import Session


@dataclass(frozen=True, slots=True)
class Facts:
    """What the steps before the export found out."""

    complexity_before: Any | None = None
    complexity_after: Any | None = None
    proof: Mapping[str, Any] | None = None
    recovery: Mapping[str, Any] | None = None
    batchnorm: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None


def assemble(
    session: Session,
    method: Method,
    loaded: LoadedModel,
    plan: Any,
    scores: Scores,
    facts: Facts,
    shipment: Shipment,
) -> RunReport:
    """The report of a run whose files are written.

    Raises:
        VerificationError: the files do not hold what was written into them.
    """
    config, folder = session.config, session.folder
    with session.stage("count"):
        measured = Measured(
            before=read_tensors(loaded.path, config.trust_pickle).tensors,
            after=read_tensors(folder.file("model.pt")).tensors,
            complexity_before=facts.complexity_before,
            complexity_after=facts.complexity_after,
        )
        achieved = method.achieved(config, plan, measured)
        layers = method.layers(plan, measured)
    artifacts = (*checkpoint_artifacts(session, loaded), *shipment.artifacts)
    report = RunReport(
        command=command_line(),
        config=config.to_dict(),
        environment=describe(),
        checkpoint=section_of(loaded) if session.chain is None else session.chain.checkpoint,
        method=config.method,
        folder=str(folder.path),
        achieved=achieved,
        layers=layers,
        skipped=method.skipped(plan),
        complexity_before=_document(session.baseline.known("complexity", facts.complexity_before)),
        complexity_after=_document(facts.complexity_after),
        tasks=scores.rows(),
        data=scores.data,
        proof=facts.proof,
        recovery=facts.recovery,
        batchnorm=facts.batchnorm,
        training=facts.training,
        export=shipment.export,
        verification=shipment.verification,
        packing=shipment.packing,
        latency=shipment.latency,
        predictions=shipment.predictions,
        artifacts=artifacts,
        warnings=tuple(session.warnings),
        notes=tuple(session.notes),
        seconds=dict(session.seconds),
    )
    if session.chain is not None:
        steps = (*session.chain.earlier, row_of(report, session.chain.text))
        earlier = sum(row["seconds"] for row in session.chain.earlier)
        seconds = {**report.seconds, **({"earlier steps": earlier} if earlier else {})}
        report = dataclasses.replace(report, steps=steps, seconds=seconds)
    report = with_gates(report, session.limits)
    return dataclasses.replace(report, gates=(*report.gates, *method.gates(plan)))


def _document(complexity: Any | None) -> dict[str, Any] | None:
    return None if complexity is None else dict(complexity.to_dict())


def section_of(loaded: LoadedModel) -> dict[str, Any]:
    """The report's section on what was loaded."""
    return {
        "path": str(loaded.path),
        "kind": str(loaded.kind),
        "sha256": loaded.sha256,
        "dtype": loaded.dtype,
        "architecture": None if loaded.architecture is None else loaded.architecture.to_dict(),
        "inputs": [spec.to_dict() for spec in loaded.inputs],
        "earlier_plans": [str(plan.get("method")) for plan in loaded.plans],
        "ignored_entries": list(loaded.ignored_entries),
        "metadata": dict(loaded.metadata),
    }


def row_of(report: RunReport, text: str) -> dict[str, Any]:
    """One step's line in the report of a combination: what was left after it."""
    after = report.complexity_after or {}
    return {
        "step": text,
        "method": report.method,
        "folder": report.folder,
        "params": after.get("params"),
        "nonzero": after.get("nonzero"),
        "macs": after.get("macs"),
        "scores": {task.name: task.scores["final"] for task in report.tasks if "final" in task.scores},
        "proof": (report.proof or {}).get("summary"),
        "achieved": [dataclasses.asdict(item) for item in report.achieved],
        "seconds": round(sum(report.seconds.values()), 1),
    }
