"""Original and compressed model on emulated ARM64: outputs against this machine's, instructions per inference.

    python benchmarks/mobile_qemu.py FOLDER original.onnx compressed.onnx

FOLDER holds `root/`, `site/` and `insn.so` (see profilers/runners/qemu.py). Writes `results/mobile_qemu.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from profilers.machine import describe
from profilers.onnx_cost import graph_cost
from profilers.runners.qemu import QemuRunner
from profilers.runners.result import Settings

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    arguments = parser.parse_args()
    found = QemuRunner(arguments.folder, sys.executable).emulate(arguments.models, Settings(timeout_s=1800))
    rows = []
    for path, one in zip(arguments.models, found, strict=True):
        macs = graph_cost(path).macs
        per_mac = one.instructions / macs if one.instructions and macs else None
        rows.append({**asdict(one), "macs": macs, "bytes": path.stat().st_size, "instructions_per_mac": per_mac})
    document = {"what": __doc__.splitlines()[0], "cpu": "cortex-a76 (emulated)", "machine": describe(), "models": rows}
    (RESULTS / "mobile_qemu.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
