"""Largest score at half the parameters against the published search, and what spectra and solve cost.

The reference's figures (CPU seconds of one thread, largest score) were measured by running its released code, seed 0
(`REFERENCE` below). Trained CIFAR-10 weights for ResNet-20 and 56; the others are torchvision's seeded random weights,
the same ones where torch and torchvision draw them the same way. The budget is the reference's own size. Torchvision's
VGG16 (4096 x 25088) is timed whole: spectra, solve, factors, proof of every layer, all together as wall clock too.
Like the reference, linear layers may be sliced (`linear_groups`); the largest score without that stands beside it.

    OMP_NUM_THREADS=1 python benchmarks/alds_reference.py --data ../shared/data [--only resnet50]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from decomposers import alds
from decomposers.layers import find_layers
from decomposers.options import AldsOptions
from examples import cifar_resnet

RESULTS = Path(__file__).parent / "results" / "alds_reference.json"
REFERENCE = {  # params kept by the reference, its largest score, its CPU seconds, the score of an exact prototype
    "resnet20-cifar": (134_854, 0.2126431, 1.3, 0.2092340),
    "resnet56-cifar": (425_222, 0.2198050, 3.2, 0.2170526),
    "vgg16_bn-cifar": (7_403_658, 0.26170, 33.0, 0.26133),
    "resnet18": (5_810_920, 0.26642, 24.5, 0.26642),
    "mobilenet_v2": (1_726_954, 0.49528, 9.3, 0.48974),
    "resnet50": (12_788_336, 0.34885, 46.0, 0.33348),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="", help="one of the names")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    makers = models(arguments.data)
    recorded = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    for name, (make, size) in makers.items():
        if arguments.only and name != arguments.only:
            continue
        recorded[name] = row = measured(name, make(), size)
        document = {"torch": torch.__version__, "torchvision": torchvision.__version__, "threads": 1}
        RESULTS.write_text(json.dumps({**document, "models": recorded}, indent=1) + "\n")
        print(name, json.dumps(row), flush=True)


def models(data: Path) -> dict[str, tuple[Callable[[], nn.Module], int]]:
    return {
        "resnet20-cifar": (lambda: trained(data, 20), 32),
        "resnet56-cifar": (lambda: trained(data, 56), 32),
        "mobilenet_v2": (lambda: seeded("mobilenet_v2"), 224),
        "resnet18": (lambda: seeded("resnet18"), 224),
        "vgg16_bn-cifar": (vgg16_cifar, 32),
        "resnet50": (lambda: seeded("resnet50"), 224),
        "vgg16": (lambda: seeded("vgg16"), 224),
    }


def trained(data: Path, depth: int) -> nn.Module:
    model: nn.Module = getattr(cifar_resnet, f"resnet{depth}")()
    file = data / "checkpoints" / f"cifar10-resnet{depth}.th"
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()


def seeded(name: str) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval()


class CifarVgg(nn.Module):
    """VGG16 with batch norms for 32x32 images: one linear layer after the last pooling; 14,728,266 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.vgg16_bn(weights=None).features
        self.classifier = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 32, 32) -> (batch, 10)."""
        return self.classifier(self.features(x).flatten(1))


def vgg16_cifar() -> nn.Module:
    torch.manual_seed(0)
    return CifarVgg().eval()


def measured(name: str, model: nn.Module, size: int) -> dict[str, Any]:
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    total = sum(parameter.numel() for parameter in model.parameters())
    begin = time.monotonic()
    structure = cpu(lambda: find_layers(model, image))[0]
    known = REFERENCE.get(name)
    options = AldsOptions(spend=False, linear_groups=True)
    seconds, analysis = cpu(lambda: alds.analyse(model, image, options))
    budget = known[0] if known else total // 2
    solve_seconds, plan = cpu(lambda: alds.choose(analysis, budget=budget))
    row: dict[str, Any] = {
        "params": total,
        "budget": budget,
        "params_after": plan.params_after,
        "macs_share": round(plan.macs_after / plan.macs_before, 4),
        "max_score": plan.max_score,
        "spectra_cpu_seconds": round(seconds - structure, 2),
        "observe_cpu_seconds": round(structure, 2),
        "solve_cpu_seconds": round(solve_seconds, 3),
    }
    if known:
        whole = alds.plan(model, image, AldsOptions(spend=False), budget=budget)
        row |= {
            "max_score_linear_layers_whole": whole.max_score,
            "reference_max_score": known[1],
            "reference_cpu_seconds": known[2],
            "prototype_max_score": known[3],
            "no_worse_than_reference": plan.max_score <= known[1],
            "times_less_cpu": round(known[2] / max(seconds + solve_seconds, 1e-3), 1),
        }
    small = copy.deepcopy(model)
    row["factors_cpu_seconds"] = round(cpu(lambda: alds.apply_(small, plan))[0], 2)
    row["proof_cpu_seconds"], proof = cpu(lambda: alds.prove(model, small, plan, image))
    row["proof_cpu_seconds"] = round(row["proof_cpu_seconds"], 2)
    if not known:
        row["wall_seconds"], row["load"] = round(time.monotonic() - begin, 1), round(os.getloadavg()[0], 1)
    row["worst_layer_difference"] = max(proof.layers.values())
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def cpu(function: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    result = function()
    return time.process_time() - begin, result


if __name__ == "__main__":
    main()
