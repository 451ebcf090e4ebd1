"""Which torchvision models lose half of their channels, in which tier, with which proofs, at what cost.

    python benchmarks/channels_coverage.py                 # all builders, one subprocess each, resumes
    python benchmarks/channels_coverage.py resnet18 vit_b_32

Protocol of specs/channels.md 5.1: batch 1, CNN 128 x 128, token nets 224, video 8 frames, RAFT 2 updates; random
seeded weights with random vectors and statistics; mean squared slices over the group mean, half of all units, at
least a tenth of each group. Seconds are CPU seconds of one thread on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "channels_coverage.json"
SIZES = {"vit": 224, "swin": 224, "maxvit": 224, "inception": 299, "vit_h": 224, "mvit": 224}
VIDEO = ("r3d", "mc3", "r2plus1d", "s3d", "mvit", "swin3d")
DETECTORS = ("rcnn", "retinanet", "fcos", "ssd")


def inputs_of(name: str) -> tuple[Any, ...]:
    import torch

    torch.manual_seed(1)
    if name.startswith("raft"):
        return torch.rand(1, 3, 128, 128) * 2 - 1, torch.rand(1, 3, 128, 128) * 2 - 1, 2
    if name.startswith(VIDEO):
        size, frames = (224, 16) if name.startswith(("mvit", "swin3d")) else (112, 16 if name == "s3d" else 8)
        return (torch.randn(1, 3, frames, size, size),)
    size = next((size for key, size in SIZES.items() if name.startswith(key)), 128)
    return (torch.randn(1, 3, size, size),)


def randomised(name: str) -> Any:
    import torch
    import torchvision

    torch.manual_seed(0)
    arguments = {"weights": None}
    if "deeplab" in name or "fcn" in name or "lraspp" in name or any(text in name for text in DETECTORS):
        arguments["weights_backbone"] = None
    model = torchvision.models.get_model(name, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5).mul_(0.5)
        for key, buffer in model.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif key.endswith("running_mean"):
                buffer.uniform_(-0.5, 0.5)
    return model


def measure(name: str) -> dict[str, Any]:
    """Everything about one model, in this process."""
    import torch

    from pruners.channels import CostModel, analyse, make_plan
    from pruners.channels.fitting import fit
    from pruners.channels.scores import ScoreOptions, score
    from pruners.channels.selection import SelectionOptions, select_share

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, inputs = randomised(name), inputs_of(name)
    start = time.process_time()
    groups = analyse(model, inputs)
    analysed = time.process_time()
    dense_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def choose(found: Any) -> Any:
        scores = score(model, found, ScoreOptions())
        return make_plan(found, select_share(found, scores, 0.5, SelectionOptions(min_channels="10%")))

    fitted = fit(model, inputs, groups, choose)
    done = time.process_time()
    plan, cost = fitted.plan, CostModel(groups)
    return {
        "tier": plan.tier,
        "why_not_lower": list(fitted.refused),
        "units": groups.units,
        "groups": len(groups.groups),
        "removed": plan.units_removed,
        "macs": cost.dense_macs,
        "macs_ratio": round(plan.macs_after / max(plan.macs_before, 1), 4),
        "params": cost.dense_params,
        "params_ratio": round(plan.params_after / plan.params_before, 4),
        "proofs": fitted.proof.to_dict()["checks"],
        "not_zeroing": list(plan.not_zeroing),
        "notes": list(plan.warnings),
        "analysis_cpu_s": round(analysed - start, 2),
        "cut_and_proof_cpu_s": round(done - analysed, 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_after_analysis_mib": dense_kib // 1024,
    }


def one(name: str, timeout: float) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name]
    begin = time.time()
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {timeout:.0f} s"}
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if run.returncode or not lines:
        tail = run.stderr.strip().splitlines()
        return {"failed": (tail[-1] if tail else f"exit {run.returncode}")[:500]}
    return {**json.loads(lines[-1]), "wall_s": round(time.time() - begin, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--timeout", type=float, default=1200)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.names[0])))
        return
    import torchvision

    names = arguments.names or [n for n in torchvision.models.list_models() if not n.startswith("quantized_")]
    RESULTS.parent.mkdir(exist_ok=True)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        if name in known and not arguments.names:
            continue
        known[name] = one(name, arguments.timeout)
        row = known[name]
        print(name, row.get("failed") or f"tier {row['tier']} MACs x{row['macs_ratio']}", flush=True)
        RESULTS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
