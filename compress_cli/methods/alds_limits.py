"""The limits of the command line in absolute numbers, for `alds_budgets.solve`: what the original counts or takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_cli.errors import UsageError
from compress_cli.methods.alds_budgets import ONNX_OVERHEAD, Budget
from compress_cli.methods.device_limits import device_asked, module_ms

if TYPE_CHECKING:
    from compress_cli.checkpoint import LoadedModel
    from compress_cli.session import Session
    from decomposers import alds


def budgets_asked(session: Session, loaded: LoadedModel, analysis: alds.Analysis) -> list[Budget]:
    """Every limit in absolute numbers.

    Raises:
        UsageError: a limit on the ONNX file or its latency in a dry run, where there is no file.
    """
    limits = {limit.kind: limit for limit in session.config.limits()}
    found = []
    if limit := limits.get("params"):
        total = float(analysis.structure.params)
        found.append(Budget("params", limit.text, float(limit.bound(total) or 0.0), total))
    if limit := limits.get("macs"):
        total = float(_complexity(session, loaded).macs)
        found.append(Budget("macs", limit.text, float(limit.bound(total) or 0.0), total))
    if limit := limits.get("bytes"):
        total, exact = _onnx_bytes(session, loaded, analysis)
        allowed = float(limit.bound(total) or 0.0) - (ONNX_OVERHEAD * len(analysis.tables) if exact else 0)
        found.append(Budget("bytes", limit.text, max(allowed, 0.0), total))
    if limit := limits.get("ms"):
        median, least = _original_ms(session, loaded)
        share = float(limit.bound(median) or 0.0) / median  # layers are timed by their least, so is the whole
        found.append(Budget("ms", limit.text, share * least, least))
    return found


def _complexity(session: Session, loaded: LoadedModel) -> Any:
    from profilers.complexity import measure

    assert loaded.module is not None
    return session.shared.once("complexity", lambda: measure(loaded.module, loaded.example_inputs))  # type: ignore[arg-type]


def _onnx_bytes(session: Session, loaded: LoadedModel, analysis: alds.Analysis) -> tuple[float, bool]:
    """Bytes of the original ONNX file, and whether they were measured; a dry run counts tensors instead."""
    if spectra_file(session) is None:
        return float(analysis.bytes_total), False
    from compress_cli.shipping import export_original

    original = session.shared.once("original onnx", lambda: export_original(session, loaded))
    return float(original.file_bytes), True


def _original_ms(session: Session, loaded: LoadedModel) -> tuple[float, float]:
    """Median and least latency of the original ONNX file on this machine; twice the same where it is predicted."""
    from compress_cli.methods.layer_timings import original_ms
    from compress_cli.shipping import export_original

    device = device_asked(session.config)
    if device is not None:
        return (module_ms(loaded, loaded.module, device),) * 2
    if spectra_file(session) is None:
        raise UsageError("--max-latency needs measurements, which a dry run does not make", "plan with --max-flops")
    original = session.shared.once("original onnx", lambda: export_original(session, loaded))
    return session.shared.once("original ms", lambda: original_ms(original.path, session.config.threads))


def spectra_file(session: Session) -> Path | None:
    """Where spectra are kept: in the run folder, or in the folder that all runs of a sweep share."""
    if session.shared.folder is not None:
        session.shared.folder.mkdir(parents=True, exist_ok=True)
        return session.shared.folder / "spectra.npz"
    try:
        return session.folder.file("spectra.npz")
    except RuntimeError:  # a dry run has no folder
        return None
