"""The public table: runs (one device, one number of threads) and the layers of the networks that were timed.

Source and licence: `LICENSE.md` beside this file.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from profilers.devices.features import LayerRow

_LITTLE_CORES = 1  # value of the column `powersave`


@dataclass(frozen=True, slots=True)
class Run:
    """One posted run: milliseconds (the minimum over its loops) by network, batch 1.

    Attributes:
        little: whether only the little cores were used.
    """

    number: int
    device: str
    chip: str
    note: str
    threads: int
    little: bool
    times: Mapping[str, float]

    @property
    def title(self) -> str:
        """Device, what tells its runs apart, and which cores ran."""
        parts = [self.device, *([self.note] if self.note else []), *(["little cores"] if self.little else [])]
        return ", ".join(parts)

    @property
    def key(self) -> str:
        """Name on the command line: lower case, words joined by dashes."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@cache
def runs() -> tuple[Run, ...]:
    """All runs in the order of the table; int8 networks and times of zero are left out."""
    facts: dict[int, dict[str, str]] = {}
    times: dict[int, dict[str, float]] = {}
    for row in _rows("ncnn-benchmark.csv.gz"):
        number = int(row["run"])
        facts.setdefault(number, row)
        if float(row["min_ms"]) > 0 and not row["model"].endswith("_int8"):
            times.setdefault(number, {})[row["model"]] = float(row["min_ms"])
    return tuple(
        Run(
            number=number,
            device=row["device"],
            chip=row["chip"],
            note=row["note"],
            threads=int(row["threads"]),
            little=row["powersave"] == str(_LITTLE_CORES),
            times=times.get(number, {}),
        )
        for number, row in facts.items()
    )


@cache
def networks() -> Mapping[str, tuple[LayerRow, ...]]:
    """Layers of every network with features, by name."""
    found: dict[str, list[LayerRow]] = {}
    for row in _rows("ncnn-models.csv.gz"):
        layer = LayerRow(
            type=row["type"],
            macs=int(row["macs"]),
            weights=int(row["weights"]),
            in_elements=int(row["in_elements"]),
            out_elements=int(row["out_elements"]),
            kernel=int(row["kernel"] or 0),
            stride=int(row["stride"] or 1),
            groups=int(row["groups"] or 1),
            in_channels=int(row["in_channels"] or 0),
            out_channels=int(row["out_channels"] or 0),
        )
        found.setdefault(row["model"], []).append(layer)
    return {name: tuple(layers) for name, layers in found.items()}


def _rows(name: str) -> Iterator[dict[str, str]]:
    data = files("profilers.devices").joinpath(name).read_bytes()
    yield from csv.DictReader(io.StringIO(gzip.decompress(data).decode("utf-8")))
