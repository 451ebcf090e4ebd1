"""ONNX Runtime for ARM64 under qemu-user: correctness of the outputs, and instruction counts where a plugin is there.

The folder that the user prepares (specification, mobile.md section 3) holds `root/` (an arm64
Debian tree with Python 3.11 and an ARM `proc/cpuinfo`), `site/` (the unzipped aarch64 wheels of onnxruntime and numpy),
and optionally `insn.so` (built from `qemu_insn.c` beside this file). Nothing here says anything about time.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profilers.runners.ort_process import PROGRAM, task_text
from profilers.runners.processes import run, run_with_errors
from profilers.runners.result import RunnerFailed, RunnerResult, Settings

PYTHON = "usr/bin/python3.11"
CPU = "cortex-a76"
COUNTED_RUNS = (1, 6)


@dataclass(frozen=True, slots=True)
class EmulatedResult:
    """One model under emulation.

    Attributes:
        max_rel: largest difference to ONNX Runtime on this host, relative to the largest output; over all outputs.
        instructions: per inference; None without the plugin.
    """

    model: str
    max_rel: float
    outputs: int
    instructions: int | None


@dataclass(frozen=True, slots=True)
class QemuRunner:
    """Emulated Cortex-A76.

    Attributes:
        folder: with `root/`, `site/` and maybe `insn.so`.
        python: the host's Python, for the reference outputs.
    """

    folder: Path
    python: str
    program: str = "qemu-aarch64"
    name: str = "qemu"
    label: str = "emulated: correctness and instruction count, no time"

    def measure(self, models: Sequence[Path], settings: Settings) -> tuple[RunnerResult, ...]:
        """Instructions per inference of each model; see `Runner`. Outputs are compared as well (`extra`)."""
        found = self.emulate(models, settings)
        return tuple(
            RunnerResult(
                model=one.model,
                device="emulated Cortex-A76",
                threads=1,
                runtime="onnxruntime (aarch64, qemu-user)",
                instructions=one.instructions,
                extra={"max_rel": one.max_rel, "outputs": one.outputs},
            )
            for one in found
        )

    def emulate(self, models: Sequence[Path], settings: Settings) -> tuple[EmulatedResult, ...]:
        """Outputs against this host's, and instructions, model by model.

        Raises:
            RunnerFailed: the folder is incomplete, or a model does not run.
        """
        self._check()
        return tuple(self._one(path, settings) for path in models)

    def _check(self) -> None:
        if shutil.which(self.program) is None:
            raise RunnerFailed(f"{self.program} is not installed (Debian: apt install qemu-user)")
        for part in (f"root/{PYTHON}", "root/proc/cpuinfo", "site/onnxruntime", "site/numpy"):
            if not (self.folder / part).exists():
                raise RunnerFailed(f"{self.folder} is no emulation folder: {part} is not there")

    def _one(self, path: Path, settings: Settings) -> EmulatedResult:
        with tempfile.TemporaryDirectory(prefix="qemu-") as folder:
            here, there = Path(folder) / "here.npz", Path(folder) / "there.npz"
            once = Settings(threads=1, iterations=0, warmup=0, batch=settings.batch)
            run([self.python, str(PROGRAM), task_text([str(path)], once, str(here))], timeout_s=settings.timeout_s)
            self._emulated(path, once, settings.timeout_s, outputs=str(there))
            differences = _differences(here, there)
        return EmulatedResult(path.name, max(differences, default=0.0), len(differences), self._count(path, settings))

    def _count(self, path: Path, settings: Settings) -> int | None:
        """Instructions of one inference, start-up taken out; None without the plugin."""
        if not (self.folder / "insn.so").exists():
            return None
        few, many = COUNTED_RUNS
        totals = []
        for runs in COUNTED_RUNS:
            task = Settings(threads=1, iterations=runs, warmup=0, batch=settings.batch)
            totals.append(_total(self._emulated(path, task, settings.timeout_s, count=True)))
        return (totals[1] - totals[0]) // (many - few)

    def _emulated(
        self, path: Path, settings: Settings, timeout_s: float, *, outputs: str | None = None, count: bool = False
    ) -> str:
        root = self.folder / "root"
        plugin = ["-plugin", f"{self.folder / 'insn.so'},inline=on", "-d", "plugin"] if count else []
        emulator = [self.program, "-cpu", CPU, "-L", str(root), *self._environment(), *plugin]
        command = [*emulator, str(root / PYTHON), str(PROGRAM), task_text([str(path)], settings, outputs)]
        return run_with_errors(command, timeout_s=timeout_s, what="the emulated run")

    def _environment(self) -> list[str]:
        """Variables inside; without hash randomisation start-up repeats within some hundred thousand instructions."""
        return ["-E", f"PYTHONPATH={self.folder / 'site'}", "-E", "PYTHONHASHSEED=0"]


def _total(text: str) -> int:
    match = re.search(r"total insns:\s*(\d+)", text) or re.search(r"insns:\s*(\d+)", text)
    if match is None:
        raise RunnerFailed("the plugin printed no instruction count", text[-500:])
    return int(match[1])


def _differences(here: Path, there: Path) -> list[float]:
    with np.load(here) as expected, np.load(there) as found:
        if sorted(expected.files) != sorted(found.files):
            raise RunnerFailed("the emulated model has other outputs")
        return [_relative(expected[name], found[name]) for name in expected.files]


def _relative(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max()) / scale
