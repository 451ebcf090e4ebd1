"""Does a decomposition make ONNX Runtime faster? Measured speed beside the MACs, a latency budget beside its result.

ResNet-18, ResNet-50 and MobileNetV2 with seeded weights at half their parameters, with one slice per layer and with any
number; then a plan for 70 % of the original's latency from measured layer timings. Original and decomposed file run
in turn in one process on one thread; `trustworthy` says whether other load disturbed the measurement.

    OMP_NUM_THREADS=1 python benchmarks/decompose_latency.py [--only resnet18]
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from compress_cli.methods.layer_timings import measure_forms, original_ms, slower_than_dense
from decomposers import alds
from decomposers.options import AldsOptions
from exporters.onnx_export import export
from profilers.latency import compare

RESULTS = Path(__file__).parent / "results" / "decompose_latency.json"
IMAGE = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
LATENCY_SHARE = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each comparison")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recorded = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in ("resnet18", "mobilenet_v2", "resnet50"):
        if arguments.only in ("", name):
            recorded[name] = rows(name, arguments.seconds)
            RESULTS.write_text(json.dumps(recorded, indent=1) + "\n")


def rows(name: str, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        original = written(model, Path(folder) / "original.onnx")
        for label, groups in (("groups 1", 1), ("any groups", None)):
            analysis = alds.analyse(model, IMAGE, AldsOptions(max_groups=groups))
            plan = alds.choose(analysis, budget=analysis.structure.params / 2)
            found[label] = row = measured(model, plan, original, Path(folder), seconds)
            print(name, label, json.dumps(row), flush=True)
        analysis = alds.analyse(model, IMAGE, AldsOptions(max_groups=1))
        timings = measure_forms(model, analysis)
        total = original_ms(original, 1)[1]
        slow = sum(1 for _ in slower_than_dense(timings))
        plan = alds.choose(analysis, cost="ms", budget=LATENCY_SHARE * total, total=total, timings=timings)
        row = measured(model, plan, original, Path(folder), seconds)
        row |= {
            "asked_ratio": LATENCY_SHARE,
            "predicted_ratio": round(plan.planned / total, 4),
            "forms_timed": sum(len(times) - 1 for times in timings.values()),
            "forms_slower_than_dense": slow,
            "dense_layers_share_of_latency": round(sum(times[None] for times in timings.values()) / total, 3),
        }
        found["latency 70 %, groups 1"] = row
        print(name, "latency", json.dumps(row), flush=True)
    return found


def written(model: nn.Module, path: Path) -> Path:
    return export(model, (IMAGE,), path, input_names=("input",)).path


def measured(model: nn.Module, plan: alds.AldsPlan, original: Path, folder: Path, seconds: float) -> dict[str, Any]:
    small = copy.deepcopy(model)
    alds.apply_(small, plan)
    comparison = compare(original, written(small, folder / "small.onnx"), threads=1, batch=1, budget_s=seconds)
    return {
        "params_share": round(plan.params_after / plan.params_before, 4),
        "macs_share": round(plan.macs_after / plan.macs_before, 4),
        "latency_ratio": comparison.ratio,
        "interval": [comparison.ratio_low, comparison.ratio_high],
        "p50_ms": {item.profile: item.p50_ms for item in comparison.latencies},
        "trustworthy": comparison.trustworthy,
        "reason": comparison.reason,
        "max_score": plan.max_score,
        "grouped_layers": sum(layer.groups > 1 for layer in plan.layers),
        "layers_replaced": len(plan.layers),
    }


if __name__ == "__main__":
    main()
