"""What fine-tuning and searches reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.sections.markdown import table


def finetuning(document: dict[str, Any]) -> Iterator[str]:
    """Accuracy after training, one row a run, by device."""
    form, rows = document["form"], [row for row in document["rows"] if "error" not in row]
    tasks = list(dict.fromkeys(_task(row) for row in rows))
    rows = sorted(rows, key=lambda row: tasks.index(_task(row)))
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
            _task(row),
            row["mode"],
            f"{row['scores']['original']:.2f}",
            _before_training(row["scores"]),
            f"{row['scores']['final']:.2f}",
        ]
        for row in rows
    ]
    yield from table(["", "mode", "dense", "before training", "after"], cells)


def _task(row: dict[str, Any]) -> str:
    return f"{row['net']}, {row['kind']}, {row['budget']}"


def _before_training(scores: dict[str, float]) -> str:
    """The last score before training; none where the zeros come while training."""
    found = scores.get("recalibrated", scores.get("pruned"))
    return "-" if found is None else f"{found:.2f}"


def rates(document: dict[str, Any]) -> Iterator[str]:
    """One epoch at several peak rates, the best in bold, and at the default."""
    yield (
        "**Peak learning rates** of one epoch of fine-tuning, batch 128, SGD where nothing else is said: top-1 on the "
        "first 2,000 test images by the number of training images; the default follows the damage that is left and the "
        "images seen (`benchmarks/learning_rates.py`)."
    )
    yield ""
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for name, row in document["rows"].items():
        net, case, images, rate, *changed = name.split(" | ")
        groups.setdefault((net, case, *changed, images.removesuffix(" images")), {})[rate] = row
    cells = []
    for (net, *words, images), found in groups.items():
        default = found.pop("default", None)
        if len(found) < 3:  # single rates serve comparisons in the file
            continue
        best = max(row["after"] for row in found.values())
        tried = ", ".join(
            f"{rate}: **{row['after']:.2f}**" if row["after"] == best else f"{rate}: {row['after']:.2f}"
            for rate, row in found.items()
        )
        before = next(iter(found.values()))["before"]
        chosen = "-" if default is None else f"{default['lr']:g}: {default['after']:.2f}"
        cells.append([net, ", ".join(words), f"{int(images):,}", f"{before:.2f}", tried, chosen])
    yield from table(["network", "", "images", "before", "at rates", "default"], cells)


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
