"""Original against half the channels and half the MACs by low rank, on every target that is here.

    python benchmarks/latency_targets.py [--networks resnet18,...] [--runtimes ncnn,mnn,litert] [--budget 4]

Measured in ONNX Runtime on this CPU, in mobile runtimes that are installed, and predicted for five devices. Weights are
random (speed does not depend on them). Writes `results/latency_targets.json`.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torchvision

from decomposers import alds, surgery
from decomposers.options import AldsOptions
from exporters.onnx_export import export
from profilers.complexity import measure
from profilers.devices.catalog import Device, devices, find
from profilers.devices.predict import predict
from profilers.errors import ProfilingFailed
from profilers.latency import compare
from profilers.machine import describe
from profilers.mobile.registry import RUNTIMES, compare_mobile
from profilers.onnx_cost import graph_cost
from pruners import channels

RESULTS = Path(__file__).resolve().parent / "results"
NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0")
DEVICES = (
    ("raspberry-pi-4", 4),
    ("raspberry-pi-5-broadcom-bcm2712", 4),
    ("snapdragon-8-gen-2", 4),
    ("mediatek-dimensity-9300", 4),
    ("nvidia-jetson-agx-orin", 4),
)
X = (torch.zeros(1, 3, 224, 224),)


def half_channels(model: torch.nn.Module) -> torch.nn.Module:
    """Half of the units of every group that may be cut, in multiples of eight where that is possible."""
    groups = channels.analyse(model, X)
    removed = {group.name: range(_half(group.units), group.units) for group in groups.groups if group.units > 1}
    small = copy.deepcopy(model)
    channels.apply_(small, channels.make_plan(groups, removed))
    return small


def _half(units: int) -> int:
    return max(1, units // 2) if units < 16 else max(8, round(units / 16) * 8)


def low_rank(model: torch.nn.Module) -> torch.nn.Module:
    """Every layer as a pair without slices (which no runtime likes), half of the MACs in all."""
    small = copy.deepcopy(model)
    macs = measure(model, X).macs
    analysis = alds.analyse(small, X, AldsOptions(max_groups=1))
    surgery.apply_(small, alds.choose(analysis, cost="macs", budget=0.5 * macs, total=float(macs)))
    return small


def version(runtime: str) -> str:
    package = {"mnn": "MNN", "litert": "ai-edge-litert"}.get(runtime, runtime)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def row(found) -> dict:
    original, compressed = found.latencies
    return {
        "original_ms": [round(original.min_ms, 3), round(original.p50_ms, 3)],
        "compressed_ms": [round(compressed.min_ms, 3), round(compressed.p50_ms, 3)],
        "ratio": round(found.ratio, 4),
        "interval": [round(found.ratio_low, 4), round(found.ratio_high, 4)],
        "trustworthy": found.trustworthy,
        "reason": found.reason,
    }


def attempt(function, before: dict | None) -> dict:
    """A new measurement, unless the one that is recorded can be trusted and the new one cannot."""
    try:
        found = row(function())
    except (ProfilingFailed, ImportError) as error:
        found = {"failed": str(error)}
    keep = before is not None and before.get("trustworthy") and not found.get("trustworthy")
    return before if keep else found


def targets(original: Path, small: Path, runtimes: Sequence[str], budget: float, before: dict) -> dict:
    costs = [graph_cost(path) for path in (original, small)]
    found = {
        "macs": [cost.macs for cost in costs],
        "bytes": [path.stat().st_size for path in (original, small)],
        **{name: value for name, value in before.items() if name in RUNTIMES and name not in runtimes},
        "onnxruntime": attempt(partial(compare, original, small, budget_s=budget), before.get("onnxruntime")),
        **{
            name: attempt(partial(compare_mobile, name, [original, small], budget_s=budget), before.get(name))
            for name in runtimes
        },
        "predicted": {},
    }
    hosts = [predict(costs[1], device).ms / predict(costs[0], device).ms for device in x86_devices()]
    found["predicted_for_x86"] = {"ratio": round(median(hosts), 3), "runs": len(hosts)}
    for name, threads in DEVICES:
        before, after = (predict(cost, find(name, threads)) for cost in costs)
        found["predicted"][f"{before.device}, {threads} threads"] = {
            "ms": [round(before.ms, 2), round(after.ms, 2)],
            "ratio": round(after.ms / before.ms, 3),
            "median_error": before.median_error,
            "p90_error": before.p90_error,
        }
    return found


def x86_devices() -> list[Device]:
    """One-thread runs of the table on processors like this one: their predicted ratios can be checked here."""
    return [device for device in devices() if device.threads == 1 and device.reliable and device.family[:3] == "x86"]


def validation(networks: dict) -> dict:
    """Predicted ratio over the ratio measured here, minus 1, of every network; and the median of its size."""
    cells = [cell for rows in networks.values() for cell in rows.values()]
    found = {"what": "ratio compressed / original: predicted (median over one-thread x86 runs) over measured, minus 1"}
    for name in ("onnxruntime", *RUNTIMES):
        pairs = [
            (cell["predicted_for_x86"]["ratio"], cell[name]["ratio"]) for cell in cells if "ratio" in cell.get(name, {})
        ]
        if pairs:
            gaps = [predicted / measured - 1 for predicted, measured in pairs]
            found[name] = {"median": round(median(map(abs, gaps)), 3), "each": [round(gap, 3) for gap in gaps]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--runtimes", default="ncnn,mnn")
    parser.add_argument("--budget", type=float, default=4.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "latency_targets.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"networks": {}}
    document.update(
        what=__doc__.splitlines()[0],
        machine=describe(),
        labels={
            "onnxruntime": "measured on this host",
            **{name: f"measured on this host, version {version(name)}" for name in arguments.runtimes.split(",")},
            "predicted": "predicted for the named device",
            "ms": "[fastest, median]; predicted: [original, compressed]",
        },
    )
    for name in arguments.networks.split(","):
        begin = time.time()
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval()
        with tempfile.TemporaryDirectory() as folder:
            original = Path(folder) / "original.onnx"
            export(model, X, original, input_names=["input"], output_names=["output"], dynamic_batch=False)
            rows = {}
            for label, make in (("half the channels", half_channels), ("half the MACs by low rank", low_rank)):
                small = Path(folder) / f"{label.replace(' ', '-')}.onnx"
                export(make(model), X, small, input_names=["input"], output_names=["output"], dynamic_batch=False)
                rows[label] = targets(
                    original,
                    small,
                    arguments.runtimes.split(","),
                    arguments.budget,
                    document["networks"].get(name, {}).get(label, {}),
                )
                print(name, label, json.dumps(rows[label])[:600], flush=True)
        document["networks"][name] = rows
        document["ratios_predicted_against_measured"] = validation(document["networks"])
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(name, f"{time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
