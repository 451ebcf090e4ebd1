"""Meeting `--max-size` and a measured `--max-latency` by cutting channels: every try is exported, and weighed or timed.

Bytes follow the parameters, so a cut to a number of parameters is corrected by what its file weighs. Time follows no
formula: the share of the MACs that stays is bisected, each try timed against the original in turns.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_cli.errors import UsageError
from compress_cli.translate import channel_errors, export_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from compress_cli.checkpoint import LoadedModel
    from compress_cli.config import RunConfig
    from compress_cli.quantities import Limit
    from compress_cli.session import Session
    from pruners.channels import Budget, Fitted

WEIGHT_BYTES = 4
SIZE_ROUNDS = 6
LATENCY_SECONDS = 3.0
Cut = Callable[["Budget"], "Fitted"]


def file_limit(config: RunConfig) -> Limit | None:
    """The limit on the ONNX file's bytes, or on its latency on this machine, if one was given."""
    return next((limit for limit in config.limits() if limit.kind in ("bytes", "ms") and not limit.target), None)


def check_file_limits(config: RunConfig) -> None:
    """One such limit at a time, and a file to hold to it.

    Raises:
        UsageError: both, or no file.
    """
    asked = [limit for limit in config.limits() if limit.kind in ("bytes", "ms")]
    if len(asked) > 1:
        raise UsageError(f"{asked[0].name} and {asked[1].name} were both given", "give one; check the other afterwards")
    if asked and not config.export:
        raise UsageError(f"{asked[0].name} needs the ONNX file", "drop --no-export, or use --max-flops")


def cut_for_file(session: Session, loaded: LoadedModel, cut: Cut, budget: Budget, whole: Any) -> Fitted:
    """The largest network found whose ONNX file is within the limit.

    Args:
        cut: cuts and proves to a budget.
        budget: the other limits.
        whole: params and macs of the uncut network.

    Raises:
        UsageError: the limit cannot be met, or holds already.
    """
    limit = file_limit(session.config)
    assert limit is not None
    if limit.kind == "bytes":
        return _by_size(limit, loaded, cut, budget, whole.params)
    return _by_latency(limit, session, loaded, cut, budget, whole.macs)


@contextmanager
def _exported(loaded: LoadedModel, module: nn.Module | None) -> Iterator[Path]:
    """A network's ONNX file for a moment."""
    from compress_cli.shipping import callable_form
    from exporters.onnx_export import export

    assert module is not None
    call = callable_form(loaded, module)
    with tempfile.TemporaryDirectory(prefix="limits-") as folder:
        path = Path(folder) / "model.onnx"
        with export_errors():
            export(call.module, call.inputs, path, input_names=call.input_names, dynamic_batch=call.dynamic_batch)
        yield path


def _bytes(loaded: LoadedModel, module: nn.Module | None) -> int:
    with _exported(loaded, module) as path:
        return sum(file.stat().st_size for file in path.parent.iterdir())


def _by_size(limit: Limit, loaded: LoadedModel, cut: Cut, budget: Budget, params: int) -> Fitted:
    full = _bytes(loaded, loaded.module)
    allowed = floor(limit.bound(full) or 0)
    if full <= allowed:
        raise UsageError(f"--max-size {limit.text} holds already: the dense file has {full:,} bytes", "ask for less")
    rest, found = max(full - WEIGHT_BYTES * params, 0), full
    for _ in range(SIZE_ROUNDS):
        most = max(floor((allowed - rest) / WEIGHT_BYTES), 0)
        try:
            with channel_errors():
                fitted = cut(dataclasses.replace(budget, params=min(most, budget.params or most)))
        except UsageError as error:
            raise UsageError(f"--max-size {limit.text} cannot be met: {error.message}", error.fix) from error
        found = _bytes(loaded, fitted.model)
        if found <= allowed:
            return fitted
        rest += found - allowed
    raise UsageError(
        f"--max-size {limit.text}: the file comes down to {found:,} of {full:,} bytes, not to {allowed:,}",
        f"allow {ceil(100 * found / full)}%",
    )


def _by_latency(limit: Limit, session: Session, loaded: LoadedModel, cut: Cut, budget: Budget, macs: int) -> Fitted:
    from compress_cli.methods.device_limits import largest_cut
    from profilers.latency import compare

    threads, fitted = session.config.threads, dict[float, "Fitted"]()
    with _exported(loaded, loaded.module) as original:
        full = compare(None, original, threads=threads, budget_s=LATENCY_SECONDS).latencies[0].p50_ms
        allowed = float(limit.bound(full) or 0.0)
        if full <= allowed:
            raise UsageError(f"--max-latency {limit.text} holds already: {full:.3g} ms were measured", "ask for less")

        def time_of(share: float) -> float:
            most = floor(share * macs) if budget.macs is None else min(budget.macs, floor(share * macs))
            with channel_errors():
                fitted[share] = cut(dataclasses.replace(budget, macs=most))
            with _exported(loaded, fitted[share].model) as path:
                pair = compare(original, path, threads=threads, budget_s=LATENCY_SECONDS)
            return full * float(pair.ratio or 1.0)  # both in turns: a busy machine slows both

        share, _ = largest_cut(time_of, allowed, full)
    return fitted[share]
