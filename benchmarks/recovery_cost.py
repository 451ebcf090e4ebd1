"""What recovery costs: CPU seconds and peak memory on one core.

python -m benchmarks.recovery_cost --checkpoints DIR --images CIFAR [--only resnet56 resnet50] [--count 256] [--prices]

ResNet-56 with trained weights on CIFAR-10 images, torchvision's ResNet-50 with seeded weights on the same images
resized to 224 x 224 (time and memory do not depend on the values); 80 % zeros by magnitude. Each network in a process
of its own; memory is the peak of that process while it recovers, and what it held before. --prices: instead of
recovery the prices of all channels (`--score recovery`), which come before it in `prune --method channels --calib`.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.recovery import Data, trained
from compress_cli.recovery import recover
from compress_cli.recovery.channel_prices import channel_prices
from profilers.machine import describe
from pruners import magnitude
from pruners.channels import analyse

RESULTS = Path(__file__).parent / "results" / "recovery_cost.json"
NETS = ("resnet56", "resnet50")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(NETS), choices=NETS)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--prices", action="store_true", help="of channels, instead of recovery")
    arguments = parser.parse_args()
    for name in arguments.only:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(cost, (name, arguments.checkpoints, arguments.images, arguments.count, arguments.prices))
        document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
        document |= {"script": "benchmarks/recovery_cost.py", "machine": describe()}
        what = ", channel prices" if arguments.prices else ""
        document["rows"][f"{name}, {arguments.count} images{what}"] = row
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
        print(name, json.dumps(row), flush=True)


def cost(name: str, checkpoints: Path, images: Path, count: int, prices: bool) -> dict[str, Any]:
    """Recover one network, or price its channels, and measure."""
    torch.set_num_threads(1)
    net, x = network(name, checkpoints), Data(images).training(count)
    if name == "resnet50":
        x = F.interpolate(x, size=(224, 224), mode="bilinear")
    small = copy.deepcopy(net)
    magnitude.apply_(small, magnitude.plan(magnitude.candidates_in_module(small), magnitude.MagnitudeOptions("0.8")))
    forward = timed(lambda: [net(part) for part in x[:32].split(8)])
    groups = analyse(net, (x[:1],)) if prices else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    if groups is not None:
        facts = {"images": count, "channels": sum(map(len, channel_prices(net, [x], groups)))}
    else:
        record = recover(net, small, [x])
        facts = {"images": record.images, "layers": len(record.layers)}
    return {
        **facts,
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "of_one_forward": round((time.process_time() - cpu) / (forward * count / 32), 1),
        "mib_before": before // 1024,
        "mib_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def network(name: str, checkpoints: Path) -> nn.Module:
    if name == "resnet56":
        return trained(checkpoints, 56)
    from torchvision.models import resnet50

    torch.manual_seed(0)
    net: nn.Module = resnet50()
    return net.eval()


@torch.no_grad()
def timed(run: Any) -> float:
    """CPU seconds of the second of two runs."""
    run()
    begin = time.process_time()
    run()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
