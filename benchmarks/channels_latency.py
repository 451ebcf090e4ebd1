"""How much faster ONNX Runtime runs networks with 75, 50 and 35 % of their channels, rounded to multiples or not.

    python benchmarks/channels_latency.py [--only resnet18] [--minutes N] [--seconds 6]

Channels by magnitude over all layers; random weights (time does not depend on them), cut and proved at 64 pixels,
counted, exported and timed at 224, batch 1, one thread, both files in turns (`profilers.latency`), by the thread's own
CPU time: other processes on the machine then disturb by their use of caches only. `speedup` is dense / cut time,
`macs_saved` dense / cut MACs: the nearer the two, the better the hardware is used. Rows that are recorded are not
measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from functools import cache
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


@cache
def dense(name: str) -> Any:
    """A network, its channel groups, its MACs and parameters, and its ONNX file."""
    import torch
    import torchvision

    from profilers.complexity import measure as count
    from pruners.channels import analyse

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torchvision.models.get_model(name, weights=None).eval()
    file = Path(tempfile.mkdtemp()) / "dense.onnx"
    write(model, file)
    return model, analyse(model, small()), count(model, image()), file


def small() -> tuple[Any, ...]:
    """What a network is analysed and proved on."""
    import torch

    return (torch.randn(1, 3, 64, 64),)


def image() -> tuple[Any, ...]:
    """What it is counted, exported and timed on."""
    import torch

    return (torch.randn(1, 3, 224, 224),)


def write(model: Any, file: Path) -> None:
    """Export for one image."""
    from exporters.onnx_export import export

    export(model, image(), file, input_names=("input",), dynamic_batch=False)


def measure(name: str, kept: float, multiple: int, seconds: float) -> dict[str, Any]:
    """One network at one width."""
    from profilers.complexity import measure as count
    from pruners.channels import SelectionOptions, fit, make_plan, score, select_share

    model, groups, before, whole = dense(name)
    options = SelectionOptions(round_to=multiple)

    def choose(found: Any) -> Any:
        return make_plan(found, select_share(found, score(model, found), 1 - kept, options))

    fitted = fit(model, small(), groups, choose)
    after = count(fitted.model, image())
    file = whole.with_name("cut.onnx")
    write(fitted.model, file)
    found = in_turns([whole, file], seconds)
    saved = before.macs / after.macs
    return {
        "params_ratio": round(after.params / before.params, 4),
        "macs_saved": round(saved, 3),
        "speedup": round(1 / (found.ratio or 1.0), 3),
        "speedup_low_high": [round(1 / (found.ratio_high or 1.0), 3), round(1 / (found.ratio_low or 1.0), 3)],
        "of_the_macs_saved": round(1 / (found.ratio or 1.0) / saved, 3),
        "cpu_ms": [round(item.p50_ms, 2) for item in found.latencies],
        "reason": found.reason,
        "tier": fitted.plan.tier,
    }


def in_turns(files: list[Path], seconds: float) -> Any:
    """Both files in turns by the CPU time of the calling thread, which does all the work."""
    from profilers.latency import Timed, compare_runs
    from profilers.ort import make_inputs, open_session

    def timed(file: Path) -> Timed:
        session = open_session(file, 1)
        feed = make_inputs(session, 1, 0)

        def run() -> object:
            return session.run(None, feed)

        def clock() -> float:
            begin = time.thread_time()
            run()
            return time.thread_time() - begin

        run()
        return Timed(file.stem, run, clock=clock)

    both = [timed(file) for file in files]
    return compare_runs(both, provider="CPUExecutionProvider", threads=1, batch=1, budget_s=seconds)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
