"""The networks that the ONNX size tables are measured on: seeded, batch norms folded, 90 % of the weights zeroed.

    python benchmarks/packing_models.py FOLDER

writes resnet18, resnet50 and mobilenet_v2 (torchvision's own initialisation, random batch-norm statistics) as dense
ONNX files and their 90 %-sparse twins. Pruning is by magnitude over the whole network; each tensor keeps 2 % at least.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from exporters import files
from exporters.onnx_export import export
from exporters.weights import weights

NAMES = ("resnet18", "resnet50", "mobilenet_v2")
SPARSITY = 0.9
FLOOR = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name in NAMES:
        print(*pruned(name, parser.parse_args().folder))


def network(name: str, seed: int = 0) -> nn.Module:
    """A torchvision network with torchvision's own random weights and batch-norm statistics that are not trivial."""
    import torchvision

    torch.manual_seed(seed)
    model = getattr(torchvision.models, name)(weights=None)
    generator = torch.Generator().manual_seed(seed + 1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model.eval()


def dense(name: str, folder: Path) -> Path:
    """The exported network; made once."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        export(network(name), (torch.zeros(1, 3, 224, 224),), path, input_names=["input"])
    return path


def pruned(name: str, folder: Path, sparsity: float = SPARSITY, floor: float = FLOOR) -> tuple[Path, Path]:
    """(dense file, sparse file); made once."""
    source = dense(name, folder)
    target = folder / f"{name}-{sparsity:g}.onnx"
    if not target.exists():
        prune(source, target, sparsity, floor)
    return source, target


def prune(source: Path, target: Path, sparsity: float, floor: float) -> None:
    """Zero the smallest weights of the file but the `floor` largest of each tensor; exactly as many as asked."""
    model = files.read(source)
    found = [weight for weight in weights(model)[0] if weight.product]
    sizes = [weight.array.size for weight in found]
    strength = np.concatenate([np.abs(weight.array).ravel() for weight in found])
    kept = np.concatenate([_largest(np.abs(weight.array).ravel(), floor) for weight in found])
    more = strength.size - round(sparsity * strength.size) - int(kept.sum())
    kept[np.argpartition(-np.where(kept, -1, strength), more - 1)[:more]] = True
    masks = dict(zip((weight.name for weight in found), np.split(kept, np.cumsum(sizes)[:-1]), strict=True))
    for tensor in model.graph.initializer:
        if tensor.name in masks:
            array: Any = numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                numpy_helper.from_array(np.where(masks[tensor.name].reshape(array.shape), array, 0), tensor.name)
            )
    onnx.save(model, target)


def _largest(strength: np.ndarray, share: float) -> np.ndarray:
    count = max(1, int(np.ceil(share * strength.size)))
    mask = np.zeros(strength.size, np.bool_)
    mask[np.argpartition(-strength, count - 1)[:count]] = True
    return mask


if __name__ == "__main__":
    main()
