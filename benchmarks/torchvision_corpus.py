"""Prune the state dict of every torchvision builder with the command a user types, and record what failed.

For each builder: a state dict with seeded weights (no architecture inside) is written to a file, then
`compress prune FILE --sparsity 0.9 --no-bench --json` runs in a fresh process. Recorded: exit code, recognised
architecture, zeros against round(0.9 N), exporter, worst relative difference between ONNX Runtime and PyTorch,
file sizes, seconds. Finished builders are kept, so that the script can be stopped and started again.

    python benchmarks/torchvision_corpus.py [--only 'resnet*'] [--jobs 2] [--work DIR]
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "torchvision_corpus.json"
SPARSITY = "0.9"

WRITE = """
import inspect, sys, torch, torchvision
name, path = sys.argv[1:]
for function in [f for f in dir(torch.nn.init) if f.endswith("_") and not f.startswith("_")]:
    setattr(torch.nn.init, function, lambda tensor, *args, **kwargs: tensor)  # weights are drawn below
names = inspect.signature(torchvision.models.get_model_builder(name)).parameters
options = {"weights": None, **({"weights_backbone": None} if "weights_backbone" in names else {})}
net = torchvision.models.get_model(name, **options)
generator = torch.Generator().manual_seed(0)
state = net.state_dict()
for key, value in state.items():
    if not value.is_floating_point():
        continue
    if key.endswith("running_var"):
        value.uniform_(0.5, 1.5, generator=generator)
    elif value.ndim >= 2:
        value.normal_(0, max(value[0].numel(), 1) ** -0.5, generator=generator)
    elif key.endswith("weight"):
        value.normal_(1, 0.1, generator=generator)
    else:
        value.normal_(0, 0.02, generator=generator)
torch.save(state, path)
"""


def main() -> None:
    """Run the corpus and print what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="glob on the builder's name")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None, help="folder for the temporary files")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="also repeat builders that are recorded already")
    arguments = parser.parse_args()
    recorded = json.loads(arguments.output.read_text())["builders"] if arguments.output.exists() else {}
    names = [name for name in builders() if fnmatch.fnmatch(name, arguments.only)]
    todo = [name for name in names if arguments.again or name not in recorded]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for name, result in pool.map(lambda name: (name, prune(name, arguments.work)), todo):
            recorded[name] = result
            save(arguments.output, recorded)
            print(f"{name:45} {'ok' if result['ok'] else 'FAILED ' + result['why']}  {result['seconds']:.0f} s", flush=True)
    failed = {name: result["why"] for name, result in recorded.items() if not result["ok"]}
    print(f"{len(recorded) - len(failed)} of {len(recorded)} builders pruned, exported and verified")
    for name, why in sorted(failed.items()):
        print(f"  {name}: {why}")


def builders() -> list[str]:
    """Names of all torchvision builders, quantised ones (same keys as their float twins) left out."""
    code = "import torchvision; print('\\n'.join(torchvision.models.list_models()))"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return [name for name in text.split() if not name.startswith("quantized_")]


def prune(name: str, work: Path | None) -> dict[str, Any]:
    """Write one state dict, prune it in a fresh process, and judge the report."""
    folder = Path(tempfile.mkdtemp(prefix="corpus-", dir=work))
    try:
        file = folder / f"{name}.pth"
        subprocess.run([sys.executable, "-c", WRITE, name, str(file)], check=True, capture_output=True)
        begin = time.monotonic()
        command = [sys.executable, "-m", "compress_cli", "prune", str(file), "--sparsity", SPARSITY, "--no-bench"]
        done = subprocess.run(
            [*command, "-o", str(folder / "run"), "--json", "-q"],
            capture_output=True,
            text=True,
            timeout=3600,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        return judge(name, done, time.monotonic() - begin)
    except subprocess.SubprocessError as error:
        return {"ok": False, "why": f"{type(error).__name__}: {str(error)[:200]}", "seconds": 0.0}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def judge(name: str, done: subprocess.CompletedProcess[str], seconds: float) -> dict[str, Any]:
    """What the report says, and whether everything that was promised is there."""
    try:
        report = json.loads(done.stdout)
    except ValueError:
        return {"ok": False, "why": f"exit {done.returncode}, no JSON: {done.stderr[-200:]}", "seconds": seconds}
    if done.returncode != 0:
        return {"ok": False, "why": f"exit {done.returncode}: {report['error']['message'][:300]}", "seconds": seconds}
    achieved = report["achieved"][0]
    architecture = (report["checkpoint"].get("architecture") or {}).get("reference")
    result = {
        "ok": True,
        "why": "",
        "seconds": round(seconds, 1),
        "architecture": architecture,
        "zeros": achieved["count"],
        "asked": achieved["asked_count"],
        "ranked": achieved["out_of"],
        "exporter": (report["export"] or {}).get("exporter"),
        "worst_relative_difference": max((a["max_rel"] for a in (report["verification"] or {}).get("agreements", [])), default=None),
        "bytes": {artifact["role"]: artifact["bytes"] for artifact in report["artifacts"]},
        "warnings": report["warnings"],
        "stages": {key: round(value, 1) for key, value in report["seconds"].items()},
    }
    problems = []
    if achieved["count"] != achieved["asked_count"]:
        problems.append(f"{achieved['count']} zeros instead of {achieved['asked_count']}")
    if result["exporter"] is None:
        problems.append("no ONNX file: " + "; ".join(report["notes"])[:300])
    if architecture is None:
        problems.append("not recognised")
    return {**result, "ok": not problems, "why": "; ".join(problems)}


def save(path: Path, recorded: dict[str, Any]) -> None:
    """Write the record with the versions it was made with."""
    import importlib.metadata as metadata

    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "onnx", "onnxruntime")}
    command = f"compress prune FILE --sparsity {SPARSITY} --no-bench"
    ok = sum(result["ok"] for result in recorded.values())
    document = {"command": command, "versions": versions, "passed": ok, "of": len(recorded)}
    path.write_text(json.dumps({**document, "builders": dict(sorted(recorded.items()))}, indent=1) + "\n")


if __name__ == "__main__":
    main()
