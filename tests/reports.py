"""A small report with known numbers, for tests of renderers and gates."""

from __future__ import annotations

from typing import Any

from compress_cli.report import Artifact, RunReport, TaskRow


def _latency(profile: str, p50: float) -> dict[str, Any]:
    times = {"p50_ms": p50, "p90_ms": p50 + 0.2, "p95_ms": p50 + 0.3, "p99_ms": p50 + 0.5, "spread_ms": 0.1}
    return {"profile": profile, "provider": "CPUExecutionProvider", "threads": 1, "batch": 1, "runs": 50, **times}


def make_report(size: int = 4_000_000, accuracy: float = 92.0, ratio: tuple[float, float] = (0.98, 1.02)) -> RunReport:
    return RunReport(
        command="compress prune m.pt --sparsity 0.9",
        config={},
        environment={},
        checkpoint={"path": "m.pt"},
        method="magnitude",
        folder="run",
        achieved=(),
        layers=(),
        skipped=(),
        complexity_before={"params": 1000, "nonzero": 1000, "macs": 5000, "sparse_macs": 5000},
        complexity_after={"params": 1000, "nonzero": 100, "macs": 5000, "sparse_macs": 700},
        tasks=(TaskRow("class", "top-1", "%", True, 100, {"original": 93.0, "final": accuracy}, {}),),
        latency={
            "latencies": [_latency("original", 10.0), _latency("compressed", 10.0 * ratio[1])],
            "ratio": ratio[1],
            "ratio_low": ratio[0],
            "ratio_high": ratio[1] + 0.1,
        },
        artifacts=(Artifact("original onnx", "o", 40_000_000, None), Artifact("onnx", "model.onnx", size, None)),
    )
