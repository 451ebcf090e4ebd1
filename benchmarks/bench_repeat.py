"""Do repeated measurements of one pair agree, and does the verdict see a process that hogs a core?

    python benchmarks/bench_repeat.py [--runs 4] [--budget 6]

ResNet-18 (224x224, random weights) against itself with half the channels. Writes `results/bench_repeat.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from latency_targets import X, half_channels

from exporters.onnx_export import export
from profilers.latency import Comparison, compare
from profilers.machine import describe

RESULTS = Path(__file__).resolve().parent / "results"


def facts(found: Comparison) -> dict:
    return {
        "ratio": round(found.ratio, 4),
        "interval": [round(found.ratio_low, 4), round(found.ratio_high, 4)],
        "p50_ms": [round(row.p50_ms, 2) for row in found.latencies],
        "min_ms": [round(row.min_ms, 2) for row in found.latencies],
        "trustworthy": found.trustworthy,
        "reason": found.reason,
        "others_cores": found.contention.others,
        "load_average": describe()["load_average"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--budget", type=float, default=6.0)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("original.onnx", "half.onnx")]
        for path, net in zip(files, (model, half_channels(model)), strict=True):
            export(net, X, path, input_names=["input"], dynamic_batch=False)
        runs = [facts(compare(*files, budget_s=arguments.budget, seed=seed)) for seed in range(arguments.runs)]
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as hog:
            try:
                beside = facts(compare(*files, budget_s=arguments.budget))
            finally:
                hog.kill()
    ratios = [run["ratio"] for run in runs]
    document = {
        "what": __doc__.splitlines()[0],
        "machine": describe(),
        "runs": runs,
        "largest_disagreement": round(max(ratios) / min(ratios) - 1, 4),
        "with_a_hog": beside,
    }
    (RESULTS / "bench_repeat.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
