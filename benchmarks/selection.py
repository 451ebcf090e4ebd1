"""CPU seconds and extra memory of choosing and zeroing 90 % of a network's weights.

Compares one streaming read of the ranked weights, `pruners.magnitude` (candidates + plan + apply_), and
`torch.nn.utils.prune.global_unstructured` (without `remove`, which costs more). Every measurement is a fresh process
with one thread; the processes of all methods are interleaved. CPU seconds are the process's own, extra memory is the
rise of its peak resident size over the built model. Weights are normal with Xavier's deviation, layer by layer.

    python benchmarks/selection.py --output benchmarks/results/selection.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODELS = {"resnet50": 25_502_912, "vit_b_16": 86_292_480, "vit_l_16": 303_904_768}
METHODS = ("read", "ours", "global_unstructured")
SPARSITY = "0.9"
BYTES_PER_WEIGHT = 60  # peak of global_unstructured (about 49) with a margin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/selection.json"))
    parser.add_argument("--repeat", type=int, default=5, help="processes per model and method")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*arguments.child)))
        return
    document = run(arguments.models, arguments.repeat)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(document)))


def run(models: list[str], repeat: int) -> dict[str, Any]:
    """Measure everything, interleaved, and return the document."""
    samples: dict[tuple[str, str], list[dict[str, float]]] = {}
    skipped: dict[tuple[str, str], str] = {}
    for turn in range(repeat):
        for model in models:
            for method in METHODS:
                if method == "global_unstructured" and turn >= (1 if MODELS[model] > 2e8 else 3):
                    continue  # minutes of CPU for a figure that does not need five samples
                reason = lacks_memory(model) if method == "global_unstructured" else None
                if reason:
                    skipped[model, method] = reason
                else:
                    samples.setdefault((model, method), []).append(in_fresh_process(model, method))
    rows = [summary(model, method, found, samples) for (model, method), found in samples.items()]
    missing = [
        {"model": model, "method": method, "not_run": why}
        for (model, method), why in skipped.items()
        if (model, method) not in samples
    ]
    return {"schema_version": 1, "sparsity": SPARSITY, "machine": machine(), "rows": rows, "not_run": missing}


def in_fresh_process(model: str, method: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--child", model, method]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    print(f"{model} {method}: {found['cpu_s']:.4f} s, {found['extra_mb']:.1f} MB", file=sys.stderr)
    return found


def summary(model: str, method: str, found: list[dict[str, float]], samples: dict[Any, Any]) -> dict[str, Any]:
    seconds = [one["cpu_s"] for one in found]
    reads = [one["cpu_s"] for one in samples[model, "read"]]
    return {
        "model": model,
        "method": method,
        "weights": found[0]["weights"],
        "zeros": found[0]["zeros"],
        "cpu_s_min": min(seconds),
        "cpu_s_median": statistics.median(seconds),
        "reads_min": min(seconds) / min(reads),
        "reads_median": statistics.median(seconds) / statistics.median(reads),
        "extra_mb_median": statistics.median(one["extra_mb"] for one in found),
        "extra_mb_max": max(one["extra_mb"] for one in found),
        "samples": len(found),
    }


def lacks_memory(model: str) -> str | None:
    need = MODELS[model] * (BYTES_PER_WEIGHT + 4)
    with open("/proc/meminfo", encoding="ascii") as lines:
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return None if free > need else f"needs about {need / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"


def machine() -> dict[str, Any]:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = {package: version(package) for package in ("torch", "torchvision", "numpy")}
    return {"cpu": name, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def table(document: dict[str, Any]) -> Iterator[str]:
    yield f"{'model':10} {'method':20} {'CPU s min':>10} {'median':>9} {'x read':>8} {'extra MB':>9} {'zeros':>12}"
    by_name = {(row["model"], row["method"]): row for row in document["rows"]}
    for row in by_name.values():
        yield (
            f"{row['model']:10} {row['method']:20} {row['cpu_s_min']:10.4f} {row['cpu_s_median']:9.4f}"
            f" {row['reads_min']:8.1f} {row['extra_mb_median']:9.1f} {row['zeros']:12,}"
        )
    for row in document["not_run"]:
        yield f"{row['model']:10} {row['method']:20} not run: {row['not_run']}"
    for model in MODELS:
        ours, theirs = by_name.get((model, "ours")), by_name.get((model, "global_unstructured"))
        if ours and theirs:
            time_ratio = theirs["cpu_s_min"] / ours["cpu_s_min"]
            yield (
                f"{model}: {time_ratio:.0f}x less CPU time,"
                f" {theirs['extra_mb_median'] / max(ours['extra_mb_median'], 0.1):.0f}x less memory"
            )


def measure(name: str, method: str) -> dict[str, float]:
    """Build one model and measure one method in this process."""
    import resource

    import torch
    from torch import nn

    torch.set_num_threads(1)
    work = {"read": read, "ours": ours, "global_unstructured": torch_prune}[method]
    work(nn.Sequential(nn.Linear(40, 40), nn.Conv2d(40, 40, 3)))  # loads what is loaded on first use
    model = build(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = min(timed(work, model) for _ in range(5 if method == "read" else 1))
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    weights, zeros = counts(model)
    return {"cpu_s": seconds, "extra_mb": extra, "weights": weights, "zeros": zeros}


def timed(work: Callable[[Any], None], model: Any) -> float:
    start = time.process_time()
    work(model)
    return time.process_time() - start


def build(name: str) -> Any:
    """Build a torchvision network without its slow initialisation; fills its memory tensor by tensor."""
    import torch
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
                continue
            fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(parameter)
            parameter.normal_(0.0, (2 / (fan_in + fan_out)) ** 0.5, generator=generator)
    return model


def counts(model: Any) -> tuple[int, int]:
    from pruners.magnitude import candidates_in_module, count_zeros

    found = candidates_in_module(model)
    if any(name.endswith("_orig") for name, _ in model.named_parameters()):
        masked = [buffer for name, buffer in model.named_buffers() if name.endswith("_mask")]
        return sum(mask.numel() for mask in masked), sum(int((mask == 0).sum()) for mask in masked)
    return found.weights, sum(count_zeros(found.tensors).values())


def read(model: Any) -> None:
    import numpy as np
    import torch

    from pruners.magnitude import candidates_in_module

    for tensor in candidates_in_module(model).tensors.values():
        np.bitwise_or.reduce(tensor.detach().view(torch.int32).view(-1).numpy())


def ours(model: Any) -> None:
    from pruners.magnitude import MagnitudeOptions, apply_, candidates_in_module, plan

    apply_(model, plan(candidates_in_module(model), MagnitudeOptions(SPARSITY)))


def torch_prune(model: Any) -> None:
    from torch.nn.utils import prune

    from pruners.magnitude import candidates_in_module

    places = [item.name.rpartition(".") for item in candidates_in_module(model).ranked]
    pairs = [(model.get_submodule(owner), leaf) for owner, _, leaf in places]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=float(SPARSITY))


if __name__ == "__main__":
    main()
