"""Write the results section of README.md from benchmarks/results/*.json; a missing file leaves its table out.

python benchmarks/tables.py           # rewrite README.md
python benchmarks/tables.py --check   # exit 1 if README.md is not what the results say
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from compress_cli.render.text import render_report
from compress_cli.report import RunReport

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
EXAMPLE_START, EXAMPLE_END = "<!-- example:start -->", "<!-- example:end -->"
START, END = "<!-- results:start -->", "<!-- results:end -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    wanted = rewritten(text)
    if arguments.check:
        return 0 if wanted == text else 1
    README.write_text(wanted, encoding="utf-8")
    return 0


def rewritten(text: str) -> str:
    """The README with today's results and the recorded example between its markers."""
    text = _between(text, START, END, "\n".join(sections()))
    return _between(text, EXAMPLE_START, EXAMPLE_END, example())


def _between(text: str, start: str, end: str, content: str) -> str:
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(end)
    return head + start + "\n\n" + content + "\n" + end + tail


def example() -> str:
    """The recorded run as a terminal of 80 columns showed it."""
    path = RESULTS / "example.json"
    if not path.exists():
        return ""
    report = RunReport.from_dict(json.loads(path.read_text(encoding="utf-8")))
    screen = io.StringIO()
    render_report(report, Console(file=screen, width=80, no_color=True, highlight=False))
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    return "\n".join(["    $ " + report.command, "", *("    " + line if line else "" for line in lines), ""])


def sections() -> Iterator[str]:
    """Every section whose results exist."""
    for name, section in SECTIONS.items():
        for path in sorted(RESULTS.glob(name)):
            yield from section(json.loads(path.read_text(encoding="utf-8")))
            yield ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table; the first column is text."""
    yield "| " + " | ".join(columns) + " |"
    yield "| --- " + "| ---: " * (len(columns) - 1) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def oneshot(document: dict[str, Any]) -> Iterator[str]:
    """Accuracy without training, global magnitude against LAMP and ERK."""
    yield (
        "**One-shot pruning without training**, top-1 on the 10,000 CIFAR-10 test images, before and after batch-norm "
        "statistics were re-estimated on 1,024 training images (`benchmarks/oneshot.py`; dense: "
        + ", ".join(f"{net} {value:.2f}" for net, value in document["dense"].items())
        + "). Bold: the statistics that the held-out loss kept."
    )
    yield ""
    rows = document["rows"]
    scores = list(dict.fromkeys(row["score"] for row in rows))
    keys = list(dict.fromkeys((row["net"], row["sparsity"]) for row in rows))
    found = {(row["net"], row["sparsity"], row["score"]): row for row in rows}
    cells = [
        [f"{net}, {float(sparsity):.0%} zeros", *(_pair(found.get((net, sparsity, score))) for score in scores)]
        for net, sparsity in sorted(keys)
    ]
    yield from table(["network", *scores], cells)


def _pair(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    before, after = f"{row['top1_pruned']:.2f}", f"{row['top1_recalibrated']:.2f}"
    return f"{before} / **{after}**" if row["kept"] else f"**{before}** / -"


def selection(document: dict[str, Any]) -> Iterator[str]:
    """Cost of the global selection against torch's own pruning."""
    yield (
        "**Choosing and zeroing 90 % of a network's weights**, CPU seconds and extra memory, each in a fresh process "
        "(`benchmarks/selection.py`). One streaming read of the weights is the unit."
    )
    yield ""
    titles = {"ours": "compress", "global_unstructured": "torch.nn.utils.prune"}
    rows = [
        [
            f"{row['model']}: {titles[row['method']]}",
            f"{row['cpu_s_min']:.3f} s",
            f"{row['reads_min']:.1f}x",
            f"{row['extra_mb_median']:.0f} MB",
        ]
        for row in document["rows"]
        if row["method"] in titles
    ]
    yield from table(["", "CPU", "of one read", "extra memory"], rows)


def packing(document: dict[str, Any]) -> Iterator[str]:
    """Bytes of ONNX files at 90 % zeros, what they lie above their entropy, and memory while loading."""
    yield (
        "**ONNX files at 90 % zeros**, MB, and how far each lies above its bound: the entropy of indices and codes, "
        "the other tensors, the network's own nodes (`benchmarks/packing_tiers.py`; seeded, 2 % of each layer kept)."
    )
    yield ""
    networks = {name: net["forms"] for name, net in document["networks"].items() if "packed-q6" in net["forms"]}
    forms = list(dict.fromkeys(form for found in networks.values() for form in found))
    rows = [[name, *(_packed(found.get(form)) for form in forms)] for name, found in networks.items()]
    yield from table(["network", *forms], rows)
    if "fc" in document["networks"]:
        peaks = document["networks"]["fc"]["forms"]
        yield ""
        yield (
            "Memory while ONNX Runtime loads a layer of 411 MB, times its size: "
            + ", ".join(f"{form} {row['peak_over_dense']:.1f}" for form, row in peaks.items())
            + "."
        )


def tiers(document: dict[str, Any]) -> Iterator[str]:
    """Accuracy per kilobyte of every form of weights."""
    yield (
        f"**Accuracy per kilobyte**: {document['what']}; top-1 on {document['test_images']:,} test images in ONNX "
        "Runtime, kB of the file (`benchmarks/tiers_cifar.py`; `plain`: codebooks fitted without images)."
    )
    yield ""
    rows = {(row["form"], row["sparsity"]): row for row in document["rows"]}
    shares = sorted({share for _, share in rows})
    cells = [
        [form, *(_accuracy_and_size(rows.get((form, share))) for share in shares)]
        for form in dict.fromkeys(row["form"] for row in document["rows"])
    ]
    yield from table(["form", *(f"{share:.0%} zeros" for share in shares)], cells)


def _accuracy_and_size(row: dict[str, Any] | None) -> str:
    return "-" if row is None else f"{row['accuracy']:.2f} in {row['bytes'] / 1e3:.0f} kB"


def _packed(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    over = f" (+{100 * row['over_bound']:.0f} %)" if "over_bound" in row else ""
    return f"{row['bytes'] / 1e6:.2f}{over}"


def recovery(document: dict[str, Any]) -> Iterator[str]:
    """Closed-form recovery without training."""
    yield (
        "**Recovery without training**: top-1 on the 10,000 CIFAR-10 test images after least squares on unlabelled "
        "training images (`benchmarks/recovery.py`)."
    )
    yield ""
    rows = [(name, row) for name, row in document["rows"].items() if isinstance(row.get("top1"), float)]
    cells = [[*name.split(" | ", 1), str(row.get("images", "-")), f"{row['top1']:.2f}"] for name, row in sorted(rows)]
    yield from table(["network", "compressed by", "images", "top-1"], cells)


def decompose_accuracy(document: dict[str, Any]) -> Iterator[str]:
    """Decompositions without training, with and without the refit; rows on all test images only."""
    yield (
        "**Low rank without training**: top-1 on the 10,000 CIFAR-10 test images, and after the closed-form refit from "
        "300 unlabelled training images (`benchmarks/decompose_accuracy.py`). `alds` is the default."
    )
    yield ""
    cells = []
    for network, rows in sorted(document.items()):
        for name, row in sorted(rows.items()):
            refitted = rows.get(f"{name}, recovered", {})
            if "max_score" not in row or not row["test_images"] == refitted.get("test_images") == 10_000:
                continue
            budget, method = name.split(" | ")
            shares = [f"{row['params_share']:.1%}", f"{row['macs_share']:.1%}"]
            figures = [f"{found['top1']:.2f}" for found in (row, refitted)]
            cells.append([f"{network} ({rows['dense']['top1']:.2f}), {budget}", method, *shares, *figures])
    yield from table(["network, budget", "method", "parameters", "MACs", "top-1", "refitted"], cells)


def decompose_latency(document: dict[str, Any]) -> Iterator[str]:
    """MACs of a decomposition beside its measured time."""
    yield (
        "**Low rank and time**: share of the original's parameters, MACs and ONNX Runtime latency (one thread, "
        "interleaved, seeded weights, `benchmarks/decompose_latency.py`); the last row of each network asked for 70 % "
        "of the latency."
    )
    yield ""
    cells = [
        [
            f"{network}, {name}",
            f"{row['params_share']:.0%}",
            f"{row['macs_share']:.0%}",
            f"{row['latency_ratio']:.3f}" + ("" if row["trustworthy"] else " (not trustworthy)"),
        ]
        for network, rows in document.items()
        for name, row in rows.items()
    ]
    yield from table(["network, form", "parameters", "MACs", "latency"], cells)


def int8(document: dict[str, Any]) -> Iterator[str]:
    """Static int8 against float."""
    machine = document["machine"]
    vnni = "with" if machine["vnni"] else "without"
    yield (
        f"**int8 with packed weights** at 90 % zeros against the float file, {machine['threads']} thread, "
        f"{machine['processor']} {vnni} VNNI (`benchmarks/int8_speed.py`)."
    )
    yield ""
    cells = []
    for name, network in document["networks"].items():
        method = next(iter(network["methods"].values()))
        latency = network["latency"]
        cells.append(
            [
                name,
                f"{network['dense_bytes'] / 1e6:.2f} to {method['bytes'] / 1e6:.2f}",
                f"{latency['float_ms']:.1f} to {latency['int8_ms']:.1f}",
                f"{1 / latency['ratio']:.2f}x",
            ]
        )
    yield from table(["network", "MB", "ms", "faster"], cells)


def corpus(document: dict[str, Any]) -> Iterator[str]:
    """How many of torchvision's builders the command prunes, exports and proves."""
    found = document["builders"].values()
    exported = [row for row in found if row["with_export"]]
    yield (
        f"**Coverage** (`benchmarks/torchvision_corpus.py`): `{document['command']}` on seeded state dicts of "
        f"torchvision's builders, each recognised without `--arch`: {sum(row['ok'] for row in found)} of {len(found)} "
        f"pruned exactly; of the {len(exported)} that were run with export, {sum(row['ok'] for row in exported)} were "
        "exported, packed and equal to PyTorch."
    )


def multitask(document: dict[str, Any]) -> Iterator[str]:
    """Three tasks on coffee leaves: searches, baselines, and what a search costs."""
    original, images = document["original"], document["images"]
    yield (
        f"**Three tasks** on coffee leaves at 40 % of the MACs (`benchmarks/pagcp_coffee.py`): stress and severity "
        f"(top-1), leaf and symptom pixels (mean IoU), {images['test']} test images, {document['tune_epochs']} epochs "
        f"of tuning; {document['note']}."
    )
    yield ""
    rows = {"trained network": (original["macs"], original["test"])}
    rows |= {name: (row.get("macs"), row["tuned"]) for name, row in document["at_40_percent"].items()}
    sizes = {"dense smaller sibling": None, "pruned shape from scratch": document["at_40_percent"]["default (path)"]}
    for name, row in document["baselines"].items():
        rows[name] = (row.get("macs") or (sizes.get(name) or {}).get("macs"), row["test"])
    cells = [
        [
            name,
            f"{(macs or original['macs']) / original['macs']:.0%}",
            *(f"{test[task]['metric']:.1f}" for task in ("stress", "severity", "mask")),
        ]
        for name, (macs, test) in rows.items()
    ]
    yield from table(["", "MACs", "stress", "severity", "mask"], cells)
    first, *_, cost = document["search_cost"].values()
    yield ""
    yield (
        f"The published search takes {first['full_forwards']:.0f} forward passes over the calibration images, ours, "
        f"with a cache and a sequential test, {cost['full_forwards']:.1f} ({cost['times_fewer']:.1f} times fewer, "
        f"{'the same' if cost['same_decisions'] else 'other'} decisions)."
    )


def sweep_caches(document: dict[str, Any]) -> Iterator[str]:
    """A sweep against separate runs."""
    equal = "the same results" if document["equal"] else "other results"
    yield (
        f"**Sweep** of {len(document['points'])} points ({document['network']}, `benchmarks/sweep_caches.py`): "
        f"{document['sweep_cpu_seconds']:.0f} s of processor time instead of {document['separate_cpu_seconds']:.0f} s "
        f"for separate runs, {equal}."
    )


def combined(document: dict[str, Any]) -> Iterator[str]:
    """Combinations, smallest first."""
    rows = sorted(document["rows"], key=lambda row: row["onnx_bytes"])
    original = rows[0]["original_onnx_bytes"]
    yield (
        f"**Combinations** of ResNet-56, {original / 1e6:.2f} MB, without training, with four-bit codes "
        f"(`benchmarks/combined.py`); the smallest that loses less than {document['limit']:g} point is marked."
    )
    yield ""
    cells = [
        [
            " then ".join(row["steps"]) + (" *" if row["name"] == document["smallest"] else ""),
            f"{row['metric']:.2f}",
            f"{row['drop']:.2f}",
            f"{row['onnx_bytes'] / 1e3:.0f}",
            f"{original / row['onnx_bytes']:.1f}x",
        ]
        for row in rows
    ]
    yield from table(["steps", "top-1", "points lost", "kB", "smaller"], cells)


def finetuning(document: dict[str, Any]) -> Iterator[str]:
    """Accuracy after training, one row a run, by device."""
    form, rows = document["form"], [row for row in document["rows"] if "error" not in row]
    small = form["train_images"] < 50_000
    title = "**Fine-tuning**" + (" in small: every kind of run works, this is not what it can reach" if small else "")
    script = f"`benchmarks/finetune_table.py{' --small' if small else ''}`"
    yield (
        f"{title}. {form['epochs']} epochs on {form['train_images']:,} CIFAR-10 training images, top-1 of the last "
        f"epoch on {form['test_images']:,} test images, seed {form['seed']}, {document['device']} ({script})."
    )
    yield ""
    cells = [
        [
            f"{row['net']}, {row['kind']}, {row['budget']}",
            row["mode"],
            f"{row['scores']['original']:.2f}",
            _before_training(row["scores"]),
            f"{row['scores']['final']:.2f}",
        ]
        for row in rows
    ]
    yield from table(["", "mode", "dense", "before training", "after"], cells)


def _before_training(scores: dict[str, float]) -> str:
    """The last score before training; none where the zeros come while training."""
    found = scores.get("recalibrated", scores.get("pruned"))
    return "-" if found is None else f"{found:.2f}"


SECTIONS: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "oneshot.json": oneshot,
    "selection.json": selection,
    "packing_tiers.json": packing,
    "tiers_cifar.json": tiers,
    "finetune-*.json": finetuning,
    "int8_speed.json": int8,
    "recovery.json": recovery,
    "decompose_accuracy.json": decompose_accuracy,
    "decompose_latency.json": decompose_latency,
    "combined.json": combined,
    "pagcp_coffee.json": multitask,
    "sweep_caches.json": sweep_caches,
    "torchvision_corpus.json": corpus,
}

if __name__ == "__main__":
    sys.exit(main())
