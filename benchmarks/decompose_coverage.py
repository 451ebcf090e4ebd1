"""Decompose every torchvision classification model to 60 % of its parameters, prove it, export it, compare it.

For each model with seeded random weights: plan at 60 % of the parameters, replace the layers, count the parameters of
the result, prove every pair and the whole network, export to ONNX with a dynamic batch and compare ONNX Runtime with
PyTorch. Each model has a child process of its own. Small models first; finished ones are kept, so that the script can
be stopped and started again. Inputs are as small as the network takes them, the parameters do not depend on it; only
vit_h_14 is built for 56 pixels instead of 224, which leaves out 240 of its 257 position vectors (0.05 %).

    OMP_NUM_THREADS=1 python benchmarks/decompose_coverage.py [--only 'resnet*'] [--again] [--minutes 13]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import fnmatch
import importlib.metadata as metadata
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from decomposers import alds
from exporters.onnx_export import export
from exporters.verify import verify

RESULTS = Path(__file__).parent / "results" / "decompose_coverage.json"
SHARE = 0.6
SIZES = {"vit_h_14": 56, "vit_*": 224, "maxvit_*": 224, "alexnet": 96, "inception_*": 96, "*": 64}
"""Pixels by glob on the name, the first that fits."""
BUILT_FOR: dict[str, dict[str, int]] = {"vit_h_14": {"image_size": 56}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="glob on the model's name")
    parser.add_argument("--again", action="store_true", help="also repeat recorded models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no model after so many")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    end = time.monotonic() + 60 * arguments.minutes
    warm_up()
    recorded = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    names = torchvision.models.list_models(module=torchvision.models)
    wanted = [name for name in names if fnmatch.fnmatch(name, arguments.only)]
    for name in sorted(wanted, key=published_params):
        if (name in recorded and not arguments.again) or time.monotonic() > end:
            continue
        recorded[name] = row = in_child(name, arguments.threads)
        save(recorded, len(names))
        print(f"{name:24} {'ok' if row['ok'] else 'FAILED ' + row['why']}  {row['seconds']}", flush=True)
    print(f"{sum(row['ok'] for row in recorded.values())} of {len(recorded)} (of {len(names)} models) are ok")


def published_params(name: str) -> int:
    return int(torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"])


def warm_up() -> None:
    """Import what every child needs, once."""
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import torch.onnx._internal.exporter  # noqa: F401


def in_child(name: str, threads: int) -> dict[str, Any]:
    """The row of one model, computed in a forked process, whose memory is free afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "row.json"
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                answer.write_text(json.dumps(checked(name, threads)))
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            return {"ok": False, "why": f"the process ended with {code}", "seconds": {}}
        found: dict[str, Any] = json.loads(answer.read_text())
        return found


@contextlib.contextmanager
def no_initialisation() -> Iterator[None]:
    names = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    saved = {name: getattr(nn.init, name) for name in names}
    try:
        for name in names:
            setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        yield
    finally:
        for name, function in saved.items():
            setattr(nn.init, name, function)


def seeded_model(name: str) -> nn.Module:
    with no_initialisation():
        model = torchvision.models.get_model(name, weights=None, **BUILT_FOR.get(name, {}))
    generator = torch.Generator().manual_seed(0)
    for key, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif "relative_position" in key:
            value.normal_(0, 0.02, generator=generator)
        elif value.ndim >= 2:
            value.normal_(0, max(value[0].numel(), 1) ** -0.5, generator=generator)
        elif key.endswith("weight"):
            value.normal_(1, 0.1, generator=generator)
        elif value.ndim < 2:
            value.normal_(0, 0.02, generator=generator)
    return model.eval()


def checked(name: str, threads: int) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    try:
        return {"ok": True, "why": "", **one(name, threads, seconds), "seconds": seconds}
    except Exception as error:  # a failure is a row of the table
        return {"ok": False, "why": f"{type(error).__name__}: {str(error)[:300]}", "seconds": seconds}


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.process_time()
    yield
    seconds[stage] = round(time.process_time() - begin, 1)


def one(name: str, threads: int, seconds: dict[str, float]) -> dict[str, Any]:
    size = next(pixels for pattern, pixels in SIZES.items() if fnmatch.fnmatch(name, pattern))
    model = seeded_model(name)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    total = sum(parameter.numel() for parameter in model.parameters())
    with timed(seconds, "spectra"):
        analysis = alds.analyse(model, image)
    with timed(seconds, "solve"):
        plan = alds.choose(analysis, budget=SHARE * total)
    small = copy.deepcopy(model)
    with timed(seconds, "factors"):
        alds.apply_(small, plan)
    params = sum(parameter.numel() for parameter in small.parameters())
    if params != plan.params_after or params > SHARE * total:
        raise ValueError(f"{params} params, planned {plan.params_after} of at most {SHARE * total}")
    with timed(seconds, "proof"):
        proof = alds.prove(model, small, plan, image)
    del model, analysis
    with timed(seconds, "export"), tempfile.TemporaryDirectory() as folder:
        written = export(small, (image,), Path(folder) / "model.onnx", input_names=("input",))
        found = verify(small, written.path, (image,), input_names=("input",), threads=threads)
    if not found.ok:
        raise ValueError(f"ONNX Runtime differs by {found.max_rel:.3g}: {'; '.join(found.notes)[:200]}")
    return {
        "input_size": size,
        "params": total,
        "params_after": params,
        "share": round(params / total, 6),
        "macs_share": round(plan.macs_after / plan.macs_before, 4),
        "layers_replaced": len(plan.layers),
        "layers_kept_dense": len(plan.kept),
        "left_alone": dict(Counter(item.reason for item in plan.skipped)),
        "max_score": plan.max_score,
        "worst_layer_difference": max(proof.layers.values(), default=0.0),
        "network_difference": proof.network,
        "exporter": written.exporter,
        "dynamic_batch": written.dynamic_batch,
        "onnx_relative_difference": found.max_rel,
    }


def save(recorded: dict[str, Any], count: int) -> None:
    versions = {package: metadata.version(package) for package in ("torch", "torchvision", "onnx", "onnxruntime")}
    ok = sum(row["ok"] for row in recorded.values())
    document = {"share": SHARE, "seconds": "CPU seconds", "versions": versions, "ok": ok, "of": count}
    RESULTS.write_text(json.dumps({**document, "models": dict(sorted(recorded.items()))}, indent=1) + "\n")


if __name__ == "__main__":
    main()
