"""The smallest ResNet-56 file under a drop of one point that a sweep over combinations finds, without training.

    python benchmarks/combined.py CIFAR CHECKPOINTS -o /tmp/combined

CIFAR holds train/ and test/ (all 10,000 test images are used). The sweep is resumed where its folder has finished
points. Writes `results/combined.json`: every point with its path, the accuracy of the file as it ships included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "combined.json"
POINTS = (
    "magnitude:sparsity=0.7",
    "channels:max-flops=85%,score=magnitude+magnitude:sparsity=0.5",  # recorded before --calib meant prices
    "channels:max-flops=85%,score=magnitude+magnitude:sparsity=0.6",
    "alds:max-params=80%+magnitude:sparsity=0.5",
    "magnitude:sparsity=0.65",
)
LIMIT = 1.0
"""Points of accuracy that the file may lose; less than this."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("-o", "--folder", type=Path, default=Path("/tmp/combined"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    asked = [str(arguments.checkpoints / "cifar10-resnet56.th"), "--arch", "examples/cifar_resnet.py:resnet56"]
    asked += ["--input-shape", "3x32x32", "--data", str(arguments.cifar), "--calib", str(arguments.cifar / "train")]
    asked += ["--calib-samples", "500", "--epochs", "0", "--no-bench", "--weights", "packed-cb4"]
    asked += [part for point in POINTS for part in ("--combine", point)]
    resumed = ["--resume"] if (arguments.folder / "sweep.json").exists() else []
    command = [sys.executable, "-m", "compress_cli", "sweep", *asked, "-o", str(arguments.folder), *resumed]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    sweep = json.loads((arguments.folder / "sweep.json").read_text(encoding="utf-8"))
    rows = [row(point) for point in sweep["results"]]
    small_enough = [found for found in rows if found["drop"] < LIMIT]
    document = {
        "what": "ResNet-56, combinations with four-bit codes, without training",
        "command": " ".join(["compress", "sweep", *asked]),
        "limit": LIMIT,
        "smallest": min(small_enough, key=lambda found: found["onnx_bytes"])["name"] if small_enough else None,
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(document["smallest"])


def row(point: dict[str, Any]) -> dict[str, Any]:
    """One point of the sweep, with what each of its steps left."""
    report = json.loads((Path(point["folder"]) / "report.json").read_text(encoding="utf-8"))
    task = report["tasks"][0]
    original = next(item["bytes"] for item in report["artifacts"] if item["role"] == "original onnx")
    kept = ("name", "steps", "onnx_bytes", "params", "macs", "sparse_macs")
    return {
        **{name: point[name] for name in kept},
        "metric": task["scores"]["shipped"],
        "drop": round(task["scores"]["original"] - task["scores"]["shipped"], 2),
        "images": task["samples"],
        "original_onnx_bytes": original,
        "path": [
            {name: step[name] for name in ("step", "params", "nonzero", "macs", "scores")} for step in report["steps"]
        ],
    }


if __name__ == "__main__":
    main()
