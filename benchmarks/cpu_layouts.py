"""Training steps on a CPU in both memory layouts: when `compress_cli/training/numerics.py` should take channels last.

    python benchmarks/cpu_layouts.py [--only resnet56]

One thread, forward and backward, CPU time, both layouts in turn three times, the fastest of each. Networks that are
recorded are not measured again. Writes `results/cpu_layouts.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from compress_cli.training.numerics import is_narrow  # noqa: E402
from examples import cifar_resnet  # noqa: E402
from profilers.machine import describe  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "cpu_layouts.json"
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}
REPETITIONS = 3
NETS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "CIFAR ResNet-20": (cifar_resnet.resnet20, 64, 32),
    "CIFAR ResNet-56": (cifar_resnet.resnet56, 64, 32),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 8, 224),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, 4, 224),
    "regnet_y_800mf": (torchvision.models.regnet_y_800mf, 4, 224),
    "shufflenet_v2_x1_0": (torchvision.models.shufflenet_v2_x1_0, 8, 224),
    "densenet121": (torchvision.models.densenet121, 4, 224),
    "googlenet": (lambda: torchvision.models.googlenet(aux_logits=False, init_weights=False), 4, 224),
    "resnet18": (torchvision.models.resnet18, 8, 224),
    "resnet50": (torchvision.models.resnet50, 4, 224),
    "convnext_tiny": (torchvision.models.convnext_tiny, 4, 224),
    "vgg11_bn": (torchvision.models.vgg11_bn, 4, 224),
}
"""Name -> factory, batch, side of the images."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one network")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else {}
    for name in [only] if only else [name for name in NETS if name not in known]:
        known[name] = measured(*NETS[name])
        print(name, known[name], flush=True)
        document = {"command": "python benchmarks/cpu_layouts.py", "machine": describe(), "rows": known}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def measured(factory: Callable[[], nn.Module], batch: int, side: int) -> dict[str, Any]:
    """CPU milliseconds of a step in both layouts, and what the rule looks at and decides."""
    torch.manual_seed(0)
    network = factory().train()
    images, classes = torch.randn(batch, 3, side, side), torch.randint(0, 10, (batch,))
    times: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for _ in range(REPETITIONS):
        for name, layout in LAYOUTS.items():
            network.to(memory_format=layout)  # type: ignore[call-overload]
            laid_out = images.contiguous(memory_format=layout)
            step(network, laid_out, classes)  # the first one allocates
            begin = time.process_time()
            step(network, laid_out, classes)
            times[name].append(1e3 * (time.process_time() - begin))
    first, last = (min(times[name]) for name in LAYOUTS)
    kernels = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    per_channel = sum(kernel.numel() for kernel in kernels) / sum(len(kernel) for kernel in kernels)
    return {
        "batch": batch,
        "first_ms": round(first, 1),
        "last_ms": round(last, 1),
        "weights_per_channel": round(per_channel, 1),
        "taken": is_narrow(network),
    }


def step(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> None:
    network.zero_grad()
    nn.functional.cross_entropy(network(images), classes).backward()


if __name__ == "__main__":
    main()
