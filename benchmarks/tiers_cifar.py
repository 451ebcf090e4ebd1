"""Accuracy per kilobyte of every form of ONNX weights: ResNet-56 on CIFAR-10, pruned without training.

Global magnitude pruning at each sparsity, batch-norm statistics estimated anew on 1,024 training images, no
fine-tuning. Every form is evaluated by ONNX Runtime on the same test images (the first N of each class by name), so the
comparison is paired. Bits per layer, codebooks (but for "-plain") and int8 ranges come from 128 other training
images. Rows that the output file has already for as many images are kept, so a run that was stopped goes on; images are
decoded once into --work.

    python benchmarks/tiers_cifar.py --data ../shared/data --images 10000 --output benchmarks/results/tiers_cifar.json
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from PIL import Image
from torch import nn

from exporters.feeds import compare
from exporters.onnx_export import export
from exporters.packing import pack
from exporters.variants import write_variant
from exporters.verify import session
from pruners import magnitude

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the checkpoint's own training script
SPARSITIES = (0.5, 0.65, 0.8, 0.9)
FORMS = (
    "packed",
    "packed-fp16",
    "packed-q8",
    "packed-q6",
    "packed-q4",
    "packed-cb5",
    "packed-cb4",
    "packed-cb4-plain",
    "packed-cb3",
    "packed-cb",
    "int8",
)
BN_IMAGES, CALIBRATION_IMAGES, BATCH = 1024, 128, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/tiers_cifar.json"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/tiers_cifar"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--sparsities", type=float, nargs="*", default=list(SPARSITIES))
    parser.add_argument("--forms", nargs="*", default=list(FORMS))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    archives = arguments.data / "cifar10"
    test, labels = cached(arguments.work, archives / "cifar10-test.tar.xz", arguments.images // 10)
    per_class = (BN_IMAGES + CALIBRATION_IMAGES) // 10 + 1
    train, _ = cached(arguments.work, archives / "cifar10-train-a.tar.xz", per_class)
    train = train[np.random.default_rng(0).permutation(len(train))]
    known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    document: dict[str, Any] = {
        "what": "ResNet-56 on CIFAR-10, pruned by global magnitude, BN re-estimated, not trained",
        "test_images": len(test),
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
        "rows": known.get("rows", []) if known.get("test_images") == len(test) else [],
    }
    done = {(row["sparsity"], row["form"]) for row in document["rows"]}
    template = arguments.work / "template.onnx"
    if not template.exists():
        export(network(arguments.data), (torch.zeros(1, 3, 32, 32),), template, input_names=["input"])
    calibration = train[BN_IMAGES : BN_IMAGES + CALIBRATION_IMAGES]
    for sparsity in arguments.sparsities:
        dense = arguments.work / f"dense-{sparsity:g}.onnx"
        if not dense.exists():
            prepare(arguments.data, template, dense, sparsity, train[:BN_IMAGES])
        for form in [form for form in arguments.forms if (sparsity, form) not in done]:
            row = measure(dense, form, calibration, test, labels)
            document["rows"].append({"sparsity": sparsity, "form": form, **row})
            document["rows"].sort(key=lambda row: (row["sparsity"], FORMS.index(row["form"])))
            print(sparsity, form, row, flush=True)
            arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def cached(work: Path, archive: Path, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """What `read` gives, kept in `work`."""
    path = work / f"{archive.name.split('.')[0]}-{per_class}.npz"
    if not path.exists():
        images, classes = read(archive, per_class)
        np.savez(path, images=images, classes=classes)
    with np.load(path) as kept:
        return kept["images"], kept["classes"]


def read(archive: Path, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `per_class` images of each class by name, normalised (n, 3, 32, 32), and their classes."""
    with tarfile.open(archive) as tar:
        pictures = {item.name: tar.extractfile(item).read() for item in tar if item.name.endswith(".webp")}  # type: ignore[union-attr]
    classes = sorted({name.split("/")[-2] for name in pictures})
    chosen = [
        (name, number)
        for number, kind in enumerate(classes)
        for name in sorted(n for n in pictures if n.split("/")[-2] == kind)[:per_class]
    ]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(pictures[name])).convert("RGB")) for name, _ in chosen])
    scaled = (pixels.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), np.array([number for _, number in chosen])


def network(data: Path) -> nn.Module:
    path = Path(__file__).resolve().parents[1] / "examples" / "cifar_resnet.py"
    spec = importlib.util.spec_from_file_location("cifar_resnet", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.resnet56()
    state = torch.load(data / "checkpoints" / "cifar10-resnet56.th", weights_only=True, map_location="cpu")[
        "state_dict"
    ]
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return model.eval()


def prepare(data: Path, template: Path, target: Path, sparsity: float, images: np.ndarray) -> None:
    """Prune, estimate batch norms, and write the folded weights into the exported graph."""
    model = network(data)
    ranked = magnitude.candidates_in_module(model)
    magnitude.apply_(model, magnitude.plan(ranked, magnitude.MagnitudeOptions(str(sparsity))))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over the batches
        norm.train()
    with torch.no_grad():
        for piece in np.split(images, len(images) // 128):
            model(torch.from_numpy(piece))
    model.eval()
    graph = onnx.load(template)
    arrays = folded(model)
    for tensor in graph.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays.pop(tensor.name), tensor.name))
    assert not arrays, sorted(arrays)
    onnx.save(graph, target)
    with torch.no_grad():
        expected = model(torch.from_numpy(images[:8])).numpy()
    got = session(target).run(None, {"input": images[:8]})[0]
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def folded(model: nn.Module) -> dict[str, np.ndarray]:
    """Weights by the exporter's names: convolutions with the batch norm behind each folded in, and the linear layer."""
    state = model.state_dict()
    arrays: dict[str, np.ndarray] = {name: state[name].numpy() for name in ("linear.weight", "linear.bias")}
    convs = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for (name, conv), norm in zip(convs, norms, strict=True):
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        arrays[f"{name}.weight"] = (conv.weight * scale.reshape(-1, 1, 1, 1)).detach().numpy()
        arrays[f"{name}.weight_bias"] = (norm.bias - norm.running_mean * scale).detach().numpy()
    return arrays


def measure(dense: Path, form: str, calibration: np.ndarray, test: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    feeds = [{"input": piece} for piece in np.split(calibration, len(calibration) // 16)]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "form.onnx"
        begin = time.perf_counter()
        row = write(dense, target, form, feeds)
        seconds = time.perf_counter() - begin
        runner = session(target)
        tops = [runner.run(None, {"input": piece})[0].argmax(1) for piece in np.split(test, len(test) // BATCH)]
    right = int(np.sum(np.concatenate(tops) == labels))
    return {"accuracy": round(100 * right / len(labels), 4), **row, "write_seconds": round(seconds, 1)}


def write(dense: Path, target: Path, form: str, feeds: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The file in one form, and what it weighs."""
    if form.endswith("-plain"):
        pack(dense, target, tier=form.removesuffix("-plain"))
        error = compare(dense, target, feeds).rms_rel
        return {"bytes": target.stat().st_size, "calibration_rms_rel": error, "bits": None}
    found = write_variant(dense, target, form, feeds=feeds)
    assert found.ok, found
    return {
        "bytes": found.bytes,
        "calibration_rms_rel": found.comparison.rms_rel,
        "bits": sorted(found.allocation.bits.values()) if found.allocation else None,
    }


if __name__ == "__main__":
    main()
