"""Latencies predicted for a named device: `--max-latency mobile:raspberry-pi-5=80%`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_cli.errors import UsageError

if TYPE_CHECKING:
    from compress_cli.quantities import Limit
    from profilers.devices.catalog import Device


def device_of(target: str, threads: int) -> Device:
    """The device of a target such as `mobile:raspberry-pi-5` or `model:core=cortex-a76,clock=2.4`.

    Raises:
        UsageError: none or several fit, or it was not measured with this many threads.
    """
    from profilers.devices.catalog import UnknownDevice, find

    try:
        return find(target.partition(":")[2], None if threads == 1 else threads)
    except UnknownDevice as error:
        close = f"closest: {', '.join(error.close)}" if error.close else "compress devices lists them"
        raise UsageError(f"{target}: {error}", close) from error


def predicted_ms(path: Path, device: Device) -> float:
    """Predicted milliseconds of an ONNX file, batch 1."""
    from profilers.devices.predict import predict
    from profilers.onnx_cost import graph_cost

    return predict(graph_cost(path), device).ms


def predictions(limits: Iterable[Limit], original: Path | None, compressed: Path, threads: int) -> list[dict[str, Any]]:
    """A report's rows on every limit with a target: both files' milliseconds, and the error of such predictions.

    Raises:
        UsageError: an unknown device.
    """
    from profilers.devices.predict import predict, ratio_error
    from profilers.onnx_cost import graph_cost

    rows = []
    for target in dict.fromkeys(limit.target for limit in limits if limit.target):
        device = device_of(target, threads)
        found = predict(graph_cost(compressed), device)
        rows.append(
            {
                "target": target,
                "device": device.key,
                "threads": device.threads,
                "original_ms": None if original is None else predicted_ms(original, device),
                "compressed_ms": found.ms,
                "median_error": device.median_error,
                "p90_error": device.p90_error,
                "ratio_median_error": ratio_error()[0],
                "ratio_p90_error": ratio_error()[1],
                "sentence": found.sentence(),
            }
        )
    return rows
