"""How much accuracy fine-tuning brings back: CIFAR ResNets, every method and training mode, one table that resumes.

    python benchmarks/finetune_table.py CIFAR10 CHECKPOINTS                  # all rows: for a GPU
    python benchmarks/finetune_table.py CIFAR10 CHECKPOINTS --small          # ResNet-20, few images: for a CPU

CIFAR10 holds train/ and test/ class folders, CHECKPOINTS the files `cifar10-resnetN.th`. Each row is one `compress`
command in its own run folder; a row that is done is not run again, an interrupted one goes on with --resume. Accuracy
is the last epoch's on all test images; nothing is selected by it. Results: benchmarks/results/finetune-DEVICE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODES = ("one-shot", "gradual", "st3", "acdc")
DISTILL = ("", "--distill")


@dataclass(frozen=True, slots=True)
class Row:
    """One run: its name in the table and what follows the checkpoint on the command line."""

    name: str
    net: str
    verb: str
    flags: tuple[str, ...]


def magnitude_rows(nets: tuple[str, ...], sparsities: tuple[str, ...], modes: tuple[str, ...]) -> list[Row]:
    rows = []
    for net in nets:
        for sparsity in sparsities:
            for mode in modes:
                for distill in DISTILL:
                    name = f"{net} magnitude {sparsity} {mode}{' distilled' if distill else ''}"
                    flags = ("--sparsity", sparsity, "--schedule", mode, *([distill] if distill else []))
                    rows.append(Row(name, net, "prune", flags))
    return rows


def structure_rows() -> list[Row]:
    channels = [("2.1x fewer MACs", "47.6%"), ("2.55x fewer MACs", "39.2%")]
    factors = [("resnet20", "25%"), ("resnet56", "25%"), ("resnet56", "15%")]
    return [
        *(
            Row(f"resnet56 channels {words}{' distilled' if d else ''}", "resnet56", "prune",
                ("--method", "channels", "--max-flops", limit, *([d] if d else [])))
            for words, limit in channels for d in DISTILL
        ),
        *(
            Row(f"{net} ALDS {limit} of the parameters{' distilled' if d else ''}", net, "decompose",
                ("--max-params", limit, *([d] if d else [])))
            for net, limit in factors for d in DISTILL
        ),
    ]  # fmt: skip


def small_tree(data: Path, target: Path, per_class: int) -> Path:
    """A tree of links to the first images of each class, for a quick run."""
    for part, count in (("train", per_class), ("test", max(1, per_class // 2))):
        for folder in sorted((data / part).iterdir()):
            (target / part / folder.name).mkdir(parents=True, exist_ok=True)
            for image in sorted(folder.iterdir())[:count]:
                link = target / part / folder.name / image.name
                if not link.exists():
                    link.symlink_to(image.resolve())
    return target


def run_row(row: Row, data: Path, checkpoints: Path, runs: Path, extra: list[str]) -> dict[str, Any]:
    folder = runs / row.name.replace(" ", "-").replace("%", "pct")
    command = [sys.executable, "-m", "compress_cli", row.verb, str(checkpoints / f"cifar10-{row.net}.th")]
    command += ["--arch", f"{ROOT}/examples/cifar_resnet.py:{row.net}", "--input-shape", "3x32x32"]
    command += ["--data", str(data), *row.flags, *extra, "--no-bench", "--no-export", "--json", "-o", str(folder)]
    if (folder / "config.json").exists():
        command.append("--resume")
    begin = time.time()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    document = json.loads(done.stdout) if done.stdout.strip() else {}
    record: dict[str, Any] = {
        "row": row.name,
        "command": "compress "
        + " ".join(command[3:]).replace(f"{ROOT.parent}/shared/", "../shared/").replace(f"{ROOT}/", ""),
        "exit_code": done.returncode,
    }
    if "error" in document or not document:
        return {**record, "error": document.get("error", {"message": "no output"})}
    task, training = document["tasks"][0], document["training"]
    return {
        **record,
        "seconds": round(time.time() - begin, 1),
        "scores": task["scores"],
        "images": task["samples"],
        "achieved": document["achieved"],
        "macs": [(document[f"complexity_{when}"] or {}).get("macs") for when in ("before", "after")],
        "device": training["device"],
        "epochs": training["epochs"],
        "steps": training["steps"],
        "lr": training["lr"],
        "weight_decay": training["weight_decay"],
        "batch_size": training["batch_size"],
        "images_per_second": training["images_per_second"],
        "seed": training["seed"],
        "machine": document["environment"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument(
        "--small", action="store_true", help="ResNet-20, one sparsity, few images: proves every row runs"
    )
    parser.add_argument("--per-class", type=int, default=200, help="training images a class with --small")
    parser.add_argument("--epochs", type=int, help="default 60, 2 with --small")
    parser.add_argument("--runs", type=Path, default=Path("runs/finetune-table"))
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--limit", type=float, default=float("inf"), help="start no further row after so many minutes")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    rows = [*magnitude_rows(("resnet32", "resnet56"), ("90%", "95%", "98%"), MODES), *structure_rows()]
    data = options.data.resolve()
    if options.small:
        rows = [*magnitude_rows(("resnet20",), ("90%",), MODES), *(row for row in structure_rows() if "20" in row.net)]
        data = small_tree(data, options.runs.resolve() / "small", options.per_class)
    import torch

    device = torch.cuda.get_device_name().replace(" ", "-") if torch.cuda.is_available() else "cpu"
    default = ROOT / "benchmarks" / "results" / f"finetune-{device}{'-small' if options.small else ''}.json"
    target = options.results or default
    results = json.loads(target.read_text())["rows"] if target.exists() else []
    done = {record["row"] for record in results if "error" not in record}
    extra = ["--epochs", str(options.epochs or (2 if options.small else 60))]
    begin = time.time()
    for row in (row for row in rows if options.rows in row.name and row.name not in done):
        if time.time() - begin > 60 * options.limit:
            break
        record = run_row(row, data, options.checkpoints.resolve(), options.runs.resolve(), extra)
        results = [item for item in results if item["row"] != row.name] + [record]
        temporary = target.with_suffix(".tmp")
        temporary.write_text(
            json.dumps({"per_class": options.per_class if options.small else None, "rows": results}, indent=1)
        )
        os.replace(temporary, target)
        sys.stdout.write(f"{row.name}: {record.get('scores', record.get('error'))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
