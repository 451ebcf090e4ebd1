"""Memory that packing a network takes, and that ONNX Runtime takes to load the packed file, over the dense file's size.

Networks of `packing_models.py`: random weights, 90 % zeros. Every figure is the peak of resident memory of a fresh
process over what it held before the step (`VmHWM - VmRSS`), one thread, the least of --repeat processes. The load
figures are those that reports of large files warn with (`exporters.packing.LOAD_MEMORY_OF_LAYERS`).

    python benchmarks/packing_memory.py [--networks vit_b_16] [--repeat 2]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from packing_models import pruned  # noqa: E402
from packing_tiers import _status, loads  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "packing_memory.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/packing"))
    parser.add_argument("--networks", nargs="*", default=["vit_b_16", "resnet50"])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--pack", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pack:
        print(json.dumps(packed(*arguments.pack)))
        return
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    document["versions"] = {name: version(name) for name in ("torch", "onnx", "onnxruntime")}
    for name in arguments.networks:
        document["networks"][name] = row = measure(name, arguments.work, arguments.repeat)
        RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(row), flush=True)


def measure(name: str, work: Path, repeat: int) -> dict[str, Any]:
    """Peaks of one network as multiples of the dense file."""
    dense, target = pruned(name, work)[1], work / f"{name}-memory.onnx"
    command = [sys.executable, __file__, "--pack", str(dense), str(target)]
    runs = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in "x" * repeat
    ]
    size = dense.stat().st_size
    peaks = {form: cost["load_peak_bytes"] for form, cost in loads({"dense": dense, "packed": target}, repeat).items()}
    return {
        "dense_bytes": size,
        "packed_bytes": runs[0]["bytes"],
        "packing": round(min(run["peak"] for run in runs) / size, 2),
        "loading": {form: round(peak / size, 2) for form, peak in peaks.items()},
    }


def packed(dense: Path, target: Path) -> dict[str, int]:
    """Pack, prove and compare in this process: bytes written and peak memory over the start."""
    import onnxruntime  # noqa: F401  (what is loaded before the step does not count)

    from exporters.variants import write_variant

    before = _status("VmRSS")
    found = write_variant(dense, target, "packed")
    return {"bytes": found.bytes, "peak": _status("VmHWM") - before}


if __name__ == "__main__":
    main()
