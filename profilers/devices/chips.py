"""Core family and clock of a run, read from the text that was posted with it.

Runs of a family share a prior in the fit, and a device that is not in the table is placed by its family and clock.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from profilers.devices.table import Run

FAMILIES: dict[str, str] = {
    "riscv": r"riscv|c910|c906|spacemit|sifive",
    "loongson": r"loongson|gs264|la264|la364|la464|la664|gs464",
    "sunway": r"sunway|sw_64",
    "xeon phi": r"xeon phi",
    "x86 avx512": r"with avx512|8124m|11800h",
    "x86 small": r"atom|celeron",
    "x86": r"amd |ryzen|intel|xeon|core i\d|zen",
    "apple": r"apple m\d|macbook",
    "apple a7": r"iphone",
    "server arm": r"neoverse|kunpeng|ftc66|phytium",
    "cortex-x": r"cortex-x\d|oryon|kyro 3\.20|a720",
    "cortex-a76": r"a75\b|a76|a77|a78|kyro485|carmel|orin",
    "cortex-a72": r"a57|a72|a73|denver|kyro|jetson nano|jetson tx2",
    "cortex-a55": r"a55|a510|a520",
    "cortex-a53": r"a53",
    "arm32": r"a5\b|a7\b|a9\b|a17\b|cortex a7",
}
"""family -> pattern in device and chip (lower case); the first that matches."""

LITTLE = {"cortex-x": "cortex-a55", "cortex-a76": "cortex-a55", "cortex-a72": "cortex-a53"}
"""Family of the little cores beside big ones of a family."""

OTHER = "other"
NAMES = (*FAMILIES, OTHER)
TYPICAL_GHZ = 2.0


def family(run: Run) -> str:
    """Core family of the cores that ran."""
    text = f"{run.device} {run.chip} {run.note}".lower().replace("without avx512", "")
    found = next((name for name, pattern in FAMILIES.items() if re.search(pattern, text)), OTHER)
    return LITTLE.get(found, found) if run.little else found


def clock_ghz(run: Run) -> float:
    """Clock of the cores that ran: the highest posted, for little cores the lowest; 2 GHz when none was posted."""
    text = f"{run.device} {run.chip} {run.note}".lower()
    clocks = [float(value) for value in re.findall(r"(\d+(?:\.\d+)?)\s*ghz", text)]
    clocks += [float(value) / 1000 for value in re.findall(r"(\d+)\s*mhz", text)]
    if not clocks:
        return TYPICAL_GHZ
    return min(clocks) if run.little else max(clocks)


def descriptors(family_name: str, threads: int, ghz: float) -> NDArray[np.float64]:
    """(1, log2 threads, log clock, one column per family): (3 + families,)."""
    one_hot = [float(name == family_name) for name in NAMES]
    return np.asarray([1.0, np.log2(threads), np.log(ghz / TYPICAL_GHZ), *one_hot])
