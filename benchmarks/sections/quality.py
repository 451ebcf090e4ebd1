"""How right compressed networks still are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from benchmarks.sections.markdown import table


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


def recovery(document: dict[str, Any]) -> Iterator[str]:
    """Closed-form recovery without training."""
    yield (
        "**Recovery without training**: top-1 on the 10,000 CIFAR-10 test images after least squares on unlabelled "
        "training images (`benchmarks/recovery.py`)."
    )
    yield ""
    rows = [(name, row) for name, row in document["rows"].items() if isinstance(row.get("top1"), float)]
    cells = []
    for name, row in sorted(rows):
        network, how = name.split(" | ", 1)
        how = re.sub(r"channels(?! by)", "channels by magnitude", how)
        cells.append([network, how, str(row.get("images", "-")), f"{row['top1']:.2f}"])
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


def combined(document: dict[str, Any]) -> Iterator[str]:
    """Combinations, smallest first."""
    rows = sorted(document["rows"], key=lambda row: row["onnx_bytes"])
    original = rows[0]["original_onnx_bytes"]
    yield (
        f"**Combinations** of ResNet-56, {original / 1e6:.2f} MB, without training, with four-bit codes, "
        f"channels ranked by magnitude (`benchmarks/combined.py`); the smallest that loses less than "
        f"{document['limit']:g} point is marked."
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


def channels_oneshot(document: dict[str, Any]) -> Iterator[str]:
    """Channel scores against each other, untrained."""
    yield (
        f"**Channels without training**: ResNet-56 ({document['dense']:.2f}), top-1 on the {document['images']:,} "
        f"CIFAR-10 test images as cut / with batch norms averaged over {document['calibration_images']:,} unlabelled "
        "training images / with their statistics moved as far as these images move between the two networks / half "
        "way, by score (`benchmarks/channels_oneshot.py`; `price` is `--score recovery`, the default "
        "with --calib; a run takes what its held-out loss prefers). Inner: the 27 widths inside the blocks; all: the "
        "residual streams too. The best of "
        "Torch-Pruning 1.6.1 on the same images: 92.59 / 91.89, 86.72 / 90.78, 59.62 / 85.42."
    )
    yield ""
    cells = document["cells"]
    names = list(dict.fromkeys(key.rpartition(" ")[0] for key in cells))
    ratios = ("1.2x", "1.5x", "2.0x")
    rows = [[name, *(_as_cut(cells.get(f"{name} {ratio}")) for ratio in ratios)] for name in names]
    yield from table(["score, widths", *(f"{ratio} fewer MACs" for ratio in ratios)], rows)


def _as_cut(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return " / ".join(
        f"{row[name]:.2f}" if name in row else "-" for name in ("top1", "top1_bn", "top1_shift", "top1_half")
    )
