"""Channel pruning of ResNet-56 on CIFAR-10 in one shot: top-1 of every score at 1.2x, 1.5x, 2x fewer MACs, untrained.

    python benchmarks/channels_oneshot.py --data DIR --checkpoints DIR [--only magnitude fisher] [--recover]

DIR holds the CIFAR-10 trees train/ and test/. Cells that are recorded are not measured again. `price` is the price
after compensation (`compress_cli.recovery`), from the same images without labels; --recover adds closed-form recovery
from them (`top1_recovered`). `measured` is magnitude times what the outputs show (`pruners.channels.measuring`).
Protocol of specs/channels.md 5.5: 10,000 test images, 1,024 training images (no augmentation) for gradients and for
re-estimated batch norms, scores on the dense model, exact MACs budget.
`top1` is as cut, `top1_bn` with plain averages over 4 batches of 256 images (the peer's protocol), `top1_shift` with
the statistics moved by the difference between the cut and the dense network on the same images (`pruners.batchnorm`),
`top1_half` with what is half way between the two.
`inner`: the 27 inner widths only, what Torch-Pruning 1.6.1 can cut; `all`: the residual streams too (tier 4: the widths
of the zero padding are rewritten in the graph).
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from compress_cli.recovery import recover  # noqa: E402
from compress_cli.recovery.channel_prices import channel_prices  # noqa: E402
from pruners.batchnorm import Original, candidates_  # noqa: E402
from pruners.channels import (  # noqa: E402
    Budget,
    CostModel,
    ScoreOptions,
    SelectionOptions,
    analyse,
    fit,
    mean_gradients,
    mean_squared_gradients,
    measured,
    plan,
    score,
)

RESULTS = ROOT / "benchmarks" / "results" / "channels_oneshot.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATIOS = (1.2, 1.5, 2.0)
RUNS = (
    ("price", None, "global"), ("measured", None, "global"),
    ("magnitude", None, "global"), ("fpgm", None, "global"), ("fisher", None, "global"), ("taylor", None, "global"),
    ("l1", None, "global"), ("bn", None, "global"), ("lamp", None, "global"), ("magnitude", "none", "global"),
    ("magnitude", None, "layer"), ("magnitude", None, "isomorphic"), ("taylor", "mean", "global"),
    ("fisher", "mean", "global"),
)  # fmt: skip
COLUMNS = {"averages": "top1_bn", "shift": "top1_shift", "half a shift": "top1_half"}
INNER = ("conv1", "*.conv2", "linear")


def read(root: Path, part: str, per_class: int) -> tuple[Tensor, Tensor]:
    """The first images of each class, normalised."""
    images, labels = [], []
    for label, folder in enumerate(sorted(path for path in (root / part).iterdir() if path.is_dir())):
        for path in sorted(folder.glob("*.webp"))[:per_class]:
            images.append(np.asarray(Image.open(path).convert("RGB")))
            labels.append(label)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (pixels - mean) / std, torch.tensor(labels)


def network(checkpoints: Path) -> nn.Module:
    """The trained ResNet-56."""
    spec = importlib.util.spec_from_file_location("cifar_resnet", ROOT / "examples" / "cifar_resnet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state = torch.load(checkpoints / "cifar10-resnet56.th", map_location="cpu", weights_only=True)["state_dict"]
    model: nn.Module = module.resnet56()
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return model.eval()


def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent right. Batch norms are folded first, which takes 0.6 times as long and moves logits by 1e-5."""
    batches = images.split(50)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, batches[0], check_trace=False)  # type: ignore[no-untyped-call]
        fast = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
        found = torch.cat([fast(part).argmax(1) for part in batches])
    return round(float((found == labels).float().mean()) * 100, 2)


def gradients(model: nn.Module, name: str, images: Tensor, labels: Tensor) -> dict[str, Tensor] | None:
    """What a score needs of the images."""

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    def pairs(size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(list(zip(images.split(size), labels.split(size), strict=True)))

    if name == "taylor":
        return mean_gradients(model, pairs(128), loss)
    return mean_squared_gradients(model, pairs(1), loss) if name == "fisher" else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--widths", nargs="*", default=("inner", "all"))
    parser.add_argument("--ratios", nargs="*", type=float, default=RATIOS)
    parser.add_argument("--recover", action="store_true", help="also recover from the calibration images")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after so many")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    torch.set_num_threads(1)
    model = network(arguments.checkpoints)
    test = read(arguments.data, "test", arguments.images // 10)
    calibration = read(arguments.data, "train", 103)
    order = torch.randperm(len(calibration[1]), generator=torch.Generator().manual_seed(0))[:1024]
    calibration = (calibration[0][order], calibration[1][order])
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cells": {}}
    document["images"], document["calibration_images"] = len(test[1]), len(calibration[1])
    if "dense" not in document:
        document["dense"] = top1(model, *test)
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    inputs = (calibration[0][:1],)
    found = {"all": analyse(model, inputs), "inner": analyse(model, inputs, ignore=INNER[:1], only=("*.conv1",))}
    original = Original(model, [(part,) for part in calibration[0].split(256)])
    known: dict[str, Any] = {}
    for name, normalise, scope in RUNS:
        if arguments.only and name not in arguments.only:
            continue
        for widths in arguments.widths:
            for ratio in arguments.ratios:
                label = "/".join([name, *([normalise] if normalise else []), *([scope] if scope != "global" else [])])
                key = f"{label} {widths} {ratio}x"
                row = document["cells"].get(key, {})
                missing = not {"top1", *COLUMNS.values()} <= row.keys()
                missing = missing or (arguments.recover and "top1_recovered" not in row)
                if not missing or time.monotonic() > end:
                    continue
                if (name, widths) not in known:
                    if name == "price":
                        known[name, widths] = channel_prices(model, [calibration[0]], found[widths])
                    elif name == "measured":
                        base = score(model, found[widths], ScoreOptions("magnitude", "none"))
                        batches = [(part,) for part in calibration[0].split(64)]
                        known[name, widths] = measured(model, found[widths], base, batches)
                    else:
                        known[name, widths] = gradients(model, name, *calibration)
                fitted, seconds = cut(
                    model, found[widths], (name, normalise, scope), ratio, known[name, widths], inputs
                )
                row |= judged(fitted, test, calibration[0], original, row)
                row["plan_cpu_s"] = round(seconds, 2)
                if arguments.recover and "top1_recovered" not in row:
                    row |= recovered(model, fitted, test, calibration[0])
                document["cells"][key] = row
                print(key, document["cells"][key], flush=True)
                RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def cut(model: nn.Module, groups: Any, how: tuple[Any, ...], ratio: float, known: Any, inputs: Any) -> Any:
    """The cut network with its plan and proofs, and CPU seconds."""
    begin = time.process_time()
    budget = Budget(macs=int(CostModel(groups).macs / ratio))

    def choose(analysis: Any) -> Any:
        given = how[0] in ("price", "measured")
        scores = known if given else score(model, analysis, ScoreOptions(how[0], how[1]), gradients=known)
        return plan(analysis, scores, budget, SelectionOptions(how[2]))

    return fit(model, inputs, groups, choose, tiers=(1, 4)), time.process_time() - begin


def judged(fitted: Any, test: Any, images: Tensor, original: Original, known: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy as cut and with batch norms anew in every way, where it is not known."""
    small, plan = copy.deepcopy(fitted.model).eval(), fitted.plan
    row = {"macs": plan.macs_after, "params": plan.params_after, "tier": plan.tier}
    if "top1" not in known:
        row["top1"] = top1(small, *test)

    def run() -> None:
        for part in images.split(256):
            small(part)

    for way in candidates_(small, run, original, plan.keep):
        if COLUMNS[way] not in known:
            row[COLUMNS[way]] = top1(small, *test)
    if not {"top1", *COLUMNS.values()} <= {*row, *known}:
        raise RuntimeError("the batch norms of the two networks do not correspond")
    return row


def recovered(model: nn.Module, fitted: Any, test: Any, images: Tensor) -> dict[str, Any]:
    """Accuracy after closed-form recovery from the calibration images."""
    small, begin = copy.deepcopy(fitted.model), time.process_time()
    record = recover(model, small, [images], correspondence=fitted.plan)
    seconds = round(time.process_time() - begin, 1)
    return {"top1_recovered": top1(small, *test), "recovery": record.chosen, "recovery_cpu_s": seconds}


if __name__ == "__main__":
    main()
