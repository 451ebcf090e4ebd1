"""What shared caches save: one `compress sweep` of three methods at three budgets against nine separate runs.

ResNet-20 on a subset of CIFAR-10 (the first images of each class, as links). Both sides use one process and one thread;
processor time of the child processes is compared, which other load on the machine hardly changes. Sizes, MACs and
accuracies of both sides must be equal.

    python benchmarks/sweep_caches.py CIFAR CHECKPOINTS [--per-class 100] [--work DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "sweep_caches.json"
BUDGETS = {"magnitude": ("sparsity", ("0.5", "0.7", "0.8")), "alds": ("max-flops", ("80%", "60%", "50%"))}
BUDGETS["channels"] = BUDGETS["alds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path, help="folder with train/ and test/")
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--per-class", type=int, default=100, help="images of each class in either split")
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="sweep-", dir=arguments.work))
    try:
        data = subset(arguments.cifar, work / "data", arguments.per_class)
        common = [str(arguments.checkpoints / "cifar10-resnet20.th"), "--arch", "examples/cifar_resnet.py:resnet20"]
        common += ["--input-shape", "3x32x32", "--data", str(data), "--epochs", "0", "--calib-samples", "500"]
        common += ["--no-bench", "--quiet", "--json"]
        shared, seconds = swept(common, work / "sweep")
        separate = [alone(common, method, asked, work) for method in BUDGETS for asked in BUDGETS[method][1]]
        document = {
            "what": "one sweep of three methods at three budgets against nine separate runs",
            "network": "ResNet-20, CIFAR-10",
            "images": {"per class and split": arguments.per_class},
            "sweep_cpu_seconds": round(seconds, 1),
            "separate_cpu_seconds": round(sum(row["cpu_seconds"] for row in separate), 1),
            "ratio": round(seconds / sum(row["cpu_seconds"] for row in separate), 3),
            "equal": all(same(one, other) for one, other in zip(shared, separate, strict=True)),
            "points": [
                one | {"alone_cpu_seconds": two["cpu_seconds"]} for one, two in zip(shared, separate, strict=True)
            ],
        }
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print({name: value for name, value in document.items() if name != "points"})
    finally:
        shutil.rmtree(work, ignore_errors=True)


def subset(source: Path, target: Path, per_class: int) -> Path:
    for split in ("train", "test"):
        for folder in sorted(path for path in (source / split).iterdir() if path.is_dir()):
            place = target / split / folder.name
            place.mkdir(parents=True)
            for image in sorted(folder.iterdir())[:per_class]:
                (place / image.name).symlink_to(image.resolve())
    return target


def swept(common: list[str], folder: Path) -> tuple[list[dict[str, Any]], float]:
    words = ["sweep", *common, "--method", ",".join(BUDGETS), "-o", str(folder)]
    for name, values in dict(BUDGETS.values()).items():
        words += [f"--{name}", ",".join(values)]
    document, seconds = command(words)
    keep = ("name", "metric", "onnx_bytes", "params", "macs", "seconds", "pareto", "error")
    return [{name: row[name] for name in keep} for row in document["results"]], seconds


def alone(common: list[str], method: str, asked: str, work: Path) -> dict[str, Any]:
    verb = "decompose" if method == "alds" else "prune"
    folder = work / f"{method}-{asked.rstrip('%')}"
    words = [verb, *common, "--method", method, f"--{BUDGETS[method][0]}", asked, "-o", str(folder)]
    report, seconds = command(words)
    sizes = {artifact["role"]: artifact["bytes"] for artifact in report["artifacts"]}
    after = report["complexity_after"]
    found = {"metric": report["tasks"][0]["scores"]["final"], "onnx_bytes": sizes["onnx"]}
    return {**found, "params": after["params"], "macs": after["macs"], "cpu_seconds": round(seconds, 1)}


def command(words: list[str]) -> tuple[dict[str, Any], float]:
    """The JSON document of one command and its processor seconds; a budget gate that fails is no failure here."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, "-m", "compress_cli", *words]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr[-1000:])
    return json.loads(done.stdout), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("params", "macs", "metric"))


if __name__ == "__main__":
    main()
