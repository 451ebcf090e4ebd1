"""How many of the networks that are around can be compressed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


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


def channels(document: dict[str, Any]) -> Iterator[str]:
    """How many of torchvision's builders lose half of their channels, proved."""
    found, tiers = document["summary"], document["summary"]["tiers"]
    good = [row["cpu_s"] for row in document["builders"].values() if "failed" not in row]
    cost = sorted(seconds["analysis"] + seconds["cut_and_proof"] for seconds in good)
    yield (
        f"**Channels out of torchvision** (`benchmarks/channels_coverage.py`): {found['cut_and_proved']} of "
        f"{found['builders']} builders lose half of their channels with every proof passed, {found['onnx_equal']} of "
        f"these equal their ONNX file. {tiers['1']} on the user's own modules, {tiers['2']} with attributes edited, "
        f"{tiers['3']} with some channels kept, {tiers['4']} as a rewritten graph; median {cost[len(cost) // 2]:.0f} s "
        f"of one core for analysis, cut and proofs."
    )
