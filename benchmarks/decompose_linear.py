"""Whether large linear layers should be sliced: a CIFAR-10 network with most of its parameters in one.

ResNet-20's trained convolutions, its 8x8 maps flattened into a linear layer of 4096 x 256 and one of 256 x 10, which
are trained here on 4,000 training images (the convolutions stay). At 30 % of the parameters with linear layers whole
and sliced, before and after the closed-form refit from 300 unlabelled images; accuracy on 1,500 test images.

    OMP_NUM_THREADS=1 python benchmarks/decompose_linear.py --checkpoints ../shared/data/checkpoints --images DIR
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

import decompose_accuracy as common

from compress_cli.recovery import recover
from decomposers import alds
from decomposers.options import AldsOptions

RESULTS = Path(__file__).parent / "results" / "decompose_linear.json"
SHARE = 0.3
EPOCHS = 8


class Flat(nn.Module):
    """(batch, 3, 32, 32) -> (batch, 10)."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.conv1, self.bn1 = body.conv1, body.bn1
        self.layer1, self.layer2, self.layer3 = body.layer1, body.layer2, body.layer3
        self.fc1, self.fc2 = nn.Linear(4096, 256), nn.Linear(256, 10)

    def maps(self, x: Tensor) -> Tensor:
        """(batch, 3, 32, 32) -> (batch, 4096)."""
        return self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))).flatten(1)

    def head(self, x: Tensor, drop: float = 0.0) -> Tensor:
        """(batch, 4096) -> (batch, 10)."""
        hidden = torch.relu(self.fc1(functional.dropout(x, 0.6 * drop)))
        return self.fc2(functional.dropout(hidden, drop))

    def forward(self, x: Tensor) -> Tensor:
        """Both."""
        return self.head(self.maps(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder with train/CLASS/* and test/CLASS/*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = common.read_images(arguments.images, 150, 300)
    model = trained(arguments.checkpoints, arguments.images)
    rows: dict[str, Any] = {"dense": {"top1": accuracy(model, images)}}
    for sliced in (False, True):
        analysis = alds.analyse(model, images.test[:1], AldsOptions(linear_groups=sliced))
        plan = alds.choose(analysis, budget=SHARE * analysis.structure.params)
        small = copy.deepcopy(model)
        alds.apply_(small, plan)
        before = accuracy(small, images)
        recover(model, small, images.training)
        forms = {layer.name: f"{layer.groups} x rank {layer.rank}" for layer in plan.layers if layer.kind == "Linear"}
        rows["sliced" if sliced else "whole"] = {
            "params_share": round(plan.params_after / plan.params_before, 4),
            "macs_share": round(plan.macs_after / plan.macs_before, 4),
            "max_score": plan.max_score,
            "linear_layers": forms,
            "top1": before,
            "top1_recovered": accuracy(small, images),
        }
    RESULTS.write_text(json.dumps({"test_images": len(images.labels), "rows": rows}, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


def trained(checkpoints: Path, root: Path) -> Flat:
    torch.manual_seed(0)
    model = Flat(common.trained(checkpoints, 20)).eval()
    classes = sorted(path.name for path in (root / "train").iterdir())
    files = [common.first(root / "train" / name, 400) for name in classes]
    labels = torch.tensor([k for k, found in enumerate(files) for _ in found])
    batches = common.read([file for found in files for file in found]).split(50)
    with torch.no_grad():
        maps = torch.cat([model.maps(batch) for batch in batches])
    parameters = [*model.fc1.parameters(), *model.fc2.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(maps)).split(100):
            loss = functional.cross_entropy(model.head(maps[chosen], 0.5), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def accuracy(model: nn.Module, images: common.Images) -> float:
    with torch.no_grad():
        found = torch.cat([model(batch).argmax(1) for batch in images.test.split(50)])
    return round(100 * float((found == images.labels).float().mean()), 2)


if __name__ == "__main__":
    main()
