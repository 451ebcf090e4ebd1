"""Peak learning rates against the length of fine-tuning, for the default of `compress_cli/training/choosing.py`.

    python benchmarks/learning_rates.py CIFAR CHECKPOINTS [--only 'channels*'] [-o /tmp/learning-rates]
    python benchmarks/tiny_vit.py CIFAR tiny_vit.pt
    python benchmarks/learning_rates.py CIFAR CHECKPOINTS --tiny-vit tiny_vit.pt --recipe optimizer=adamw

Each case is pruned once (with recovery from 1,000 training images, or without) and then tuned by `compress finetune
--epochs 1` on the first images of each class, at each rate. The first 2,000 test images judge: the network has seen
all training images, so that none of them is held out. The rate 0 stands for the default: the same in one command
without --lr. Recorded cells are not measured again. Writes `results/learning_rates.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "learning_rates.json"
CHANNELS = ("--method", "channels", "--max-flops", "50%", "--score")
CASES: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "channels 2x, by prices, recovered": ("prune", (*CHANNELS, "recovery"), True),
    "channels 2x, recovered": ("prune", (*CHANNELS, "magnitude"), True),
    "channels 2x": ("prune", (*CHANNELS, "magnitude"), False),
    "magnitude 0.9": ("prune", ("--sparsity", "0.9"), False),
    "magnitude 0.9, recovered": ("prune", ("--sparsity", "0.9"), True),
    "magnitude 0.7": ("prune", ("--sparsity", "0.7"), False),
    "alds 50%": ("decompose", ("--max-params", "50%"), False),
}
"""Name -> verb, flags, whether it is recovered from unlabelled images first."""
IMAGES = (2_500, 10_000, 50_000)
RATES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05)
JUDGES = 200
"""Test images of each class."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("-o", "--folder", type=Path, default=Path("/tmp/learning-rates"))
    parser.add_argument("--net", type=int, default=20)
    parser.add_argument("--tiny-vit", type=Path, help="weights from tiny_vit.py, instead of a ResNet")
    parser.add_argument("--recipe", nargs="*", default=[], help="words for --recipe")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--only", default="*", help="pattern of case names")
    parser.add_argument("--images", type=int, nargs="*", default=IMAGES)
    parser.add_argument("--rates", type=float, nargs="*", default=RATES)
    arguments = parser.parse_args()
    for name in ("cifar", "checkpoints", "folder", *(["tiny_vit"] if arguments.tiny_vit else [])):
        setattr(arguments, name, getattr(arguments, name).resolve())  # the tool runs in another directory
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else {}
    for case in (name for name in CASES if fnmatch(name, arguments.only)):
        for images in arguments.images:
            for rate in arguments.rates:
                name = " | ".join(
                    [net(arguments), case, f"{images} images", f"{rate:g}" if rate else "default", *changed(arguments)]
                )
                if name not in known:
                    known[name] = measured(arguments, case, images, rate)
                    print(name, known[name], flush=True)
                    save(known)


def net(arguments: argparse.Namespace) -> str:
    """The network's name, which is its factory's too."""
    return "tiny_vit" if arguments.tiny_vit else f"resnet{arguments.net}"


def changed(arguments: argparse.Namespace) -> list[str]:
    """What is not usual, for the row's name."""
    batch = arguments.batch_size
    return [*arguments.recipe, *([] if batch == 128 else [f"batch {batch}"])]


def measured(arguments: argparse.Namespace, case: str, images: int, rate: float) -> dict[str, Any]:
    """Top-1 on the judging images before and after tuning; `before` is before `finetune` looks at batch norms."""
    data = tree(arguments.cifar, arguments.folder / f"images-{images}", images // 10)
    run = arguments.folder / "run"
    words = [f"--recipe={word}" for word in arguments.recipe]
    training = ("--epochs", 1, "--batch-size", arguments.batch_size, *words)
    if rate:
        name = f"{net(arguments)} {case} {data.name}".replace(" ", "-").replace("%", "")
        start = pruned(arguments, case, data, arguments.folder / name, "--epochs", 0)
        compress(arguments, "finetune", start / "model.pt", run, "--data", data, "--lr", rate, *training)
    else:
        shutil.rmtree(run, ignore_errors=True)
        pruned(arguments, case, data, run, "--data", data, *training)
    document = report(run)
    scores = document["tasks"][0]["scores"]
    before = scores["original"] if rate else scores.get("recovered", scores.get("recalibrated", scores["pruned"]))
    return {"lr": document["training"]["lr"], "before": before, "after": scores["final"]}


def pruned(arguments: argparse.Namespace, case: str, data: Path, folder: Path, *how: object) -> Path:
    """The run folder of the case's network, made once."""
    verb, flags, recovered = CASES[case]
    if not (folder / "report.json").exists():
        checkpoint = arguments.tiny_vit or arguments.checkpoints / f"cifar10-{net(arguments)}.th"
        file = "benchmarks/tiny_vit.py" if arguments.tiny_vit else "examples/cifar_resnet.py"
        arch = ("--arch", ROOT / f"{file}:{net(arguments)}", "--input-shape", "3x32x32")
        calib = ("--calib", data / "train", "--calib-samples", 1000) if recovered else ("--data", data)
        compress(arguments, verb, checkpoint, folder, *arch, *calib, *flags, *how)
    return folder


def tree(cifar: Path, folder: Path, per_class: int) -> Path:
    """train/ and test/ with links to the first images of each class."""
    for part, count in (("train", per_class), ("test", JUDGES)):
        for source in sorted(path for path in (cifar / part).iterdir() if path.is_dir()):
            target = folder / part / source.name
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(source.iterdir())[:count]:
                link = target / file.name
                if not link.exists():
                    link.symlink_to(file.resolve())
    return folder


def compress(arguments: argparse.Namespace, verb: str, checkpoint: Path, folder: Path, *flags: object) -> None:
    """One run of the tool."""
    common = ["--mean", ".485,.456,.406", "--std", ".229,.224,.225", "--no-bench", "--no-export", "-q", "--overwrite"]
    words = [verb, checkpoint, "-o", folder, *common, *flags]
    command = [sys.executable, "-m", "compress_cli", *map(str, words)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)


def report(folder: Path) -> dict[str, Any]:
    """The run's report."""
    document: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return document


def save(rows: dict[str, dict[str, Any]]) -> None:
    """Write what is known, whole."""
    document = {
        "what": "top-1 on the first 2,000 test images, one epoch of fine-tuning, by images and peak learning rate",
        "command": "python benchmarks/learning_rates.py CIFAR CHECKPOINTS",
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
