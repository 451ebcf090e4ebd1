"""How much faster ONNX Runtime runs networks with 75, 50 and 35 % of their channels, rounded to multiples or not.

    python benchmarks/channels_latency.py [--only resnet18] [--minutes N] [--seconds 6]

Channels by magnitude over all layers; random weights (time does not depend on them), cut and proved at 64 pixels,
counted, exported and timed at 224, batch 1, one thread, both files in turns (`profilers.latency.compare`). `speedup` is
dense / cut time, `macs_saved` dense / cut MACs: the nearer the two, the better the hardware is used. Rows that are
recorded are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results" / "channels_latency.json"
NETS = ("resnet18", "mobilenet_v2", "resnet50")
KEPT = (0.75, 0.5, 0.35)
MULTIPLES = (1, 8, 16)


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=NETS)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no row after so many")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each pair")
    asked = parser.parse_args()
    from profilers.machine import describe

    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    end = time.monotonic() + 60 * asked.minutes
    for name in asked.only:
        for kept in KEPT:
            for multiple in MULTIPLES:
                key = {"model": name, "channels_kept": kept, "round_to": multiple}
                known = any(all(row[k] == v for k, v in key.items()) for row in document["rows"])
                if known or time.monotonic() > end:
                    continue
                row = {**key, **measure(name, kept, multiple, asked.seconds)}
                document["rows"].append(row)
                document |= {"script": "benchmarks/channels_latency.py", "machine": describe()}
                RESULTS.write_text(json.dumps(document, indent=1) + "\n")
                print(json.dumps(row), flush=True)


def measure(name: str, kept: float, multiple: int, seconds: float) -> dict[str, Any]:
    """One network at one width."""
    import torch
    import torchvision

    from exporters.onnx_export import export
    from profilers.complexity import measure as count
    from profilers.latency import compare
    from pruners.channels import SelectionOptions, analyse, fit, make_plan, score, select_share

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torchvision.models.get_model(name, weights=None).eval()
    example, image = (torch.randn(1, 3, 64, 64),), (torch.randn(1, 3, 224, 224),)
    options = SelectionOptions(round_to=multiple)

    def choose(found: Any) -> Any:
        return make_plan(found, select_share(found, score(model, found), 1 - kept, options))

    fitted = fit(model, example, analyse(model, example), choose)
    counts = [count(net, image) for net in (model, fitted.model)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "dense.onnx", Path(folder) / "cut.onnx"]
        for net, file in zip((model, fitted.model), files, strict=True):
            export(net, image, file, input_names=("input",), dynamic_batch=False)
        found = compare(*files, threads=1, batch=1, budget_s=seconds)
    saved = counts[0].macs / counts[1].macs
    return {
        "params_ratio": round(counts[1].params / counts[0].params, 4),
        "macs_saved": round(saved, 3),
        "speedup": round(1 / (found.ratio or 1.0), 3),
        "speedup_low_high": [round(1 / (found.ratio_high or 1.0), 3), round(1 / (found.ratio_low or 1.0), 3)],
        "of_the_macs_saved": round(1 / (found.ratio or 1.0) / saved, 3),
        "ms": [round(item.p50_ms, 2) for item in found.latencies],
        "trustworthy": found.trustworthy,
        "reason": found.reason,
        "tier": fitted.plan.tier,
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
