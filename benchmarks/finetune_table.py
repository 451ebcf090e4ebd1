"""How much accuracy fine-tuning brings back: CIFAR ResNets, every method and training mode, one table that resumes.

    python benchmarks/finetune_table.py CIFAR10 CHECKPOINTS --parallel 6 --limit 9     # all rows: for a GPU
    python benchmarks/finetune_table.py CIFAR10 CHECKPOINTS --small                    # ResNet-20, few images: a CPU

CIFAR10 holds train/ and test/ class folders, CHECKPOINTS the files `cifar10-resnetN.th`. Each row is one `compress`
command in its own run folder (--runs); a row that is done is not run again, and one that was stopped (by --limit, or by
the machine) goes on with --resume from its last saved state, on another machine too if the run folders came along.
Networks of this size leave most of a GPU idle, hence --parallel. Accuracy is the last epoch's on all test images of
the tree; nothing is selected by it. Results: benchmarks/results/finetune-DEVICE.json, with the form's settings.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODES = ("one-shot", "gradual", "st3", "acdc")
DISTILL = ("", "--distill")
SAVED_AFTER = 30
"""Seconds that a row has for saving its state when the time is up."""


@dataclass(frozen=True, slots=True)
class Row:
    """One run: what the table says of it, and what follows the checkpoint on the command line."""

    net: str
    kind: str
    budget: str
    mode: str
    verb: str
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        """The row's key."""
        return " ".join(filter(None, (self.net, self.kind, self.budget, self.mode)))


@dataclass(frozen=True, slots=True)
class Form:
    """What all rows of one table share; rows of another form are not mixed with them."""

    train_images: int
    test_images: int
    epochs: int
    batch_size: int
    seed: int


def magnitude_rows(nets: tuple[str, ...], sparsities: tuple[str, ...]) -> list[Row]:
    return [
        Row(net, "magnitude", f"{sparsity} zeros", _mode(mode, distill), "prune",
            ("--sparsity", sparsity, "--schedule", mode, *filter(None, [distill])))
        for net in nets for sparsity in sparsities for mode in MODES for distill in DISTILL
    ]  # fmt: skip


def channel_rows(nets: tuple[str, ...], limits: tuple[tuple[str, str], ...]) -> list[Row]:
    return [
        Row(net, "channels", f"{words} fewer MACs", _mode("one-shot", distill), "prune",
            ("--method", "channels", "--max-flops", limit, *filter(None, [distill])))
        for net in nets for words, limit in limits for distill in DISTILL
    ]  # fmt: skip


def factor_rows(budgets: tuple[tuple[str, str], ...]) -> list[Row]:
    return [
        Row(net, "ALDS", f"{100 - int(limit.rstrip('%'))}% fewer parameters", _mode("one-shot", distill), "decompose",
            ("--max-params", limit, *filter(None, [distill])))
        for net, limit in budgets for distill in DISTILL
    ]  # fmt: skip


def _mode(mode: str, distill: str) -> str:
    return f"{mode}, distilled" if distill else mode


def all_rows() -> list[Row]:
    """The table of issue 7."""
    return [
        *magnitude_rows(("resnet32", "resnet56"), ("90%", "95%", "98%")),
        *channel_rows(("resnet56",), (("2.1x", "47.6%"), ("2.55x", "39.2%"))),
        *factor_rows((("resnet20", "25%"), ("resnet56", "25%"), ("resnet56", "15%"))),
    ]


def small_rows() -> list[Row]:
    """One budget of every kind of row, on the smallest network."""
    return [
        *magnitude_rows(("resnet20",), ("90%",)),
        *channel_rows(("resnet20",), (("2.1x", "47.6%"),)),
        *factor_rows((("resnet20", "25%"),)),
    ]


def small_tree(data: Path, target: Path, counts: dict[str, int]) -> Path:
    """A tree of links to the first images of each class, for a quick run."""
    for part, count in counts.items():
        for folder in sorted((data / part).iterdir()):
            (target / part / folder.name).mkdir(parents=True, exist_ok=True)
            for image in sorted(folder.iterdir())[:count]:
                link = target / part / folder.name / image.name
                if not link.exists():
                    link.symlink_to(image.resolve())
    return target


def run_row(row: Row, data: Path, checkpoints: Path, runs: Path, form: Form, deadline: float) -> dict[str, Any] | None:
    """The record of one row; None when the time was up before it had finished."""
    folder = runs / row.name.replace(" ", "-").replace("%", "pct").replace(",", "")
    command = [sys.executable, "-m", "compress_cli", row.verb, str(checkpoints / f"cifar10-{row.net}.th")]
    command += ["--arch", f"{ROOT}/examples/cifar_resnet.py:{row.net}", "--input-shape", "3x32x32"]
    command += ["--data", str(data), *row.flags, "--epochs", str(form.epochs), "--batch-size", str(form.batch_size)]
    command += ["--seed", str(form.seed), "--no-bench", "--no-export", "--json", "-o", str(folder)]
    shown = "compress " + " ".join(command[3:])
    if (folder / "config.json").exists():
        command.append("--resume")
    begin = time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        answer, _ = process.communicate(timeout=max(1.0, deadline - begin))
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.communicate(timeout=SAVED_AFTER)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        return None
    document = json.loads(answer) if answer.strip() else {}
    record: dict[str, Any] = {
        "row": row.name,
        "net": row.net,
        "kind": row.kind,
        "budget": row.budget,
        "mode": row.mode,
        "command": _without_places(shown, {str(data): "CIFAR10", str(runs): "runs", str(checkpoints): "CHECKPOINTS"}),
        "exit_code": process.returncode,
    }
    if "error" in document or not document:
        return {**record, "error": document.get("error", {"message": "no output"})}
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # small enough to travel between machines
    return {**record, **_facts(document)}


def _without_places(command: str, places: dict[str, str]) -> str:
    """A command that can be typed elsewhere too: this machine's folders become names."""
    for place, name in {**places, f"{ROOT}/": ""}.items():
        command = command.replace(place, name)
    return command


def _facts(document: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of a run's report."""
    task, training = document["tasks"][0], document["training"]
    complexity = [document[f"complexity_{when}"] or {} for when in ("before", "after")]
    taken = ("epochs", "steps", "lr", "weight_decay", "batch_size", "images_per_second", "precision", "seed")
    return {
        "scores": task["scores"],
        "images": task["samples"],
        "achieved": document["achieved"],
        "macs": [item.get("macs") for item in complexity],
        "params": [item.get("params") for item in complexity],
        "distilled": training["distill"] > 0,
        "training_seconds": round(training["seconds"], 1),
        **{name: training[name] for name in taken},
    }


def images_in(folder: Path) -> int:
    return sum(1 for item in folder.glob("*/*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--small", action="store_true", help="ResNet-20, one budget each, few images: every row runs")
    parser.add_argument("--per-class", type=int, default=100, help="training images a class with --small")
    parser.add_argument("--epochs", type=int, help="default 60, 2 with --small")
    parser.add_argument("--batch-size", type=int, help="default 128, 50 with --small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1, help="rows at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/finetune-table"))
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--limit", type=float, default=20_000, help="save and stop after so many minutes")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    options = parser.parse_args()
    rows = [row for row in (small_rows() if options.small else all_rows()) if options.rows in row.name]
    if options.list:
        sys.stdout.write("".join(f"{row.name}\n" for row in rows))
        return
    sys.path.insert(0, str(ROOT))
    data, runs = options.data.resolve(), options.runs.resolve()
    if options.small:
        counts = {"train": options.per_class, "test": max(1, options.per_class // 2)}
        data = small_tree(data, runs / "small", counts)
    form = Form(
        images_in(data / "train"),
        images_in(data / "test"),
        options.epochs or (2 if options.small else 60),
        options.batch_size or (50 if options.small else 128),
        options.seed,
    )
    runs.mkdir(parents=True, exist_ok=True)
    table = Table(options.results, options.small, form, runs)
    deadline = time.time() + 60 * options.limit

    def carry_out(row: Row) -> None:
        if deadline - time.time() > SAVED_AFTER:
            table.add(run_row(row, data, options.checkpoints.resolve(), runs, form, deadline))

    with ThreadPoolExecutor(options.parallel) as pool:
        list(pool.map(carry_out, [row for row in rows if row.name not in table.done]))
    table.publish()


class Table:
    """The rows done: on disk in the runs' folder after each one, and where the results are when a call ends."""

    def __init__(self, path: Path | None, small: bool, form: Form, runs: Path) -> None:
        import dataclasses

        import torch

        from profilers.machine import describe

        self.device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        name = f"finetune-{self.device.replace(' ', '-').lower()}{'-small' if small else ''}.json"
        self.path = path or ROOT / "benchmarks" / "results" / name
        self.form = dataclasses.asdict(form)
        self.machine = describe()
        self.rows: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._progress = runs / self.path.name
        for known in (self.path, self._progress):
            found = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
            if found.get("form") == self.form and len(found["rows"]) > len(self.rows):
                self.rows = found["rows"]

    @property
    def done(self) -> set[str]:
        """Names of the rows that need not run again."""
        return {record["row"] for record in self.rows if "error" not in record}

    def add(self, record: dict[str, Any] | None) -> None:
        """Take a row in; a row that was stopped leaves nothing."""
        if record is None:
            return
        with self._lock:
            self.rows = [item for item in self.rows if item["row"] != record["row"]] + [record]
            self._write(self._progress)
            sys.stdout.write(f"{record['row']}: {record.get('scores', record.get('error'))}\n")
            sys.stdout.flush()

    def publish(self) -> None:
        """Write the results, if there are any."""
        if self.rows:
            self._write(self.path)

    def _write(self, path: Path) -> None:
        document = {"device": self.device, "form": self.form, "machine": self.machine, "rows": self.rows}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)


if __name__ == "__main__":
    main()
