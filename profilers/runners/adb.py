"""Android phones through adb: push a benchmark program and the models, run, parse, remove.

The program is the user's own build: `onnxruntime_perf_test` (for .onnx files) or `benchncnn` (for ncnn .param files);
neither comes in a wheel. Before timing, keep the phone off the charger and its screen on, and prefer the big cores.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from profilers.runners.processes import run
from profilers.runners.result import RunnerFailed, RunnerResult, Settings, merge, parse_line, tail

FOLDER = "/data/local/tmp/compress-bench"
ROUNDS = 4
PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How one program is called on the phone and read.

    Attributes:
        command: (program name, model name, settings, runs) -> shell command inside `FOLDER`.
        parse: output -> milliseconds by field of `RunnerResult`, empty when it cannot be read.
    """

    runtime: str
    command: Callable[[str, str, Settings, int], str]
    parse: Callable[[str], dict[str, float]]


def perf_test_command(program: str, model: str, settings: Settings, runs: int) -> str:
    """`onnxruntime_perf_test` with generated inputs (`-I`) and a fixed number of runs."""
    return f"./{program} -I -m times -r {runs} -x {settings.threads} -y 1 -e cpu {model} result.txt"


def parse_perf_test(text: str) -> dict[str, float]:
    """Milliseconds from `P50 Latency: 0.0041 s` and its like, memory from `Peak working set size: 37318656 bytes`."""
    names = {"Min Latency": "min_ms", "P50 Latency": "median_ms", "P90 Latency": "p90_ms"}
    found = {}
    for label, name in names.items():
        match = re.search(rf"{label}:\s*([0-9.eE+-]+)\s*s", text, re.IGNORECASE)
        if match:
            found[name] = float(match[1]) * 1e3
    average = re.search(r"Average inference time cost:\s*([0-9.eE+-]+)\s*ms", text)
    if average and not found:
        found["median_ms"] = float(average[1])
    memory = re.search(r"Peak working set size:\s*(\d+)", text)
    if memory:
        found["peak_rss_mb"] = int(memory[1]) / 2**20
    return found


def benchncnn_command(program: str, model: str, settings: Settings, runs: int) -> str:
    """`benchncnn LOOPS THREADS POWERSAVE GPU COOLING param=...`: big cores (2), no GPU (-1), no pauses (0)."""
    return f"./{program} {runs} {settings.threads} 2 -1 0 param={model}"


def parse_benchncnn(text: str) -> dict[str, float]:
    """Milliseconds from a line such as `net.param  min =  4.11  max =  4.31  avg =  4.15`."""
    match = re.search(r"min\s*=\s*([0-9.]+)\s+max\s*=\s*([0-9.]+)\s+avg\s*=\s*([0-9.]+)", text)
    return {"min_ms": float(match[1]), "median_ms": float(match[3])} if match else {}


BENCHMARKS = {
    "onnxruntime_perf_test": Benchmark("onnxruntime", perf_test_command, parse_perf_test),
    "benchncnn": Benchmark("ncnn", benchncnn_command, parse_benchncnn),
}


@dataclass(frozen=True, slots=True)
class AdbRunner:
    """One phone.

    Attributes:
        serial: as `adb devices` prints it; "" for the only one.
        binary: the benchmark program, built for the phone.
        adb: the adb program.
    """

    serial: str
    binary: Path
    adb: str = "adb"
    label: str = "measured on a device"
    pause_s: float = PAUSE_S

    @property
    def name(self) -> str:
        """`adb:SERIAL`."""
        return f"adb:{self.serial}" if self.serial else "adb"

    def measure(self, models: Sequence[Path], settings: Settings) -> tuple[RunnerResult, ...]:
        """Run all models in turn; see `Runner`."""
        benchmark = BENCHMARKS.get(self.binary.name)
        if benchmark is None:
            raise RunnerFailed(f"{self.binary.name} is not known; name it {' or '.join(BENCHMARKS)}")
        device = self._device(settings)
        self._adb(["shell", f"mkdir -p {FOLDER}"], settings)
        try:
            names = [f"{index}{path.suffix}" for index, path in enumerate(models)]
            for path, name in zip([self.binary, *models], [self.binary.name, *names], strict=True):
                self._adb(["push", str(path), f"{FOLDER}/{name}"], settings)
            self._adb(["shell", f"chmod 755 {FOLDER}/{self.binary.name}"], settings)
            return self._rounds(benchmark, models, names, settings, device)
        finally:
            self._adb(["shell", f"rm -rf {FOLDER}"], settings)

    def _rounds(
        self, benchmark: Benchmark, models: Sequence[Path], names: Sequence[str], settings: Settings, device: str
    ) -> tuple[RunnerResult, ...]:
        found: list[list[RunnerResult]] = [[] for _ in models]
        runs = max(1, settings.iterations // ROUNDS)
        for number in range(ROUNDS):
            order = range(len(models))
            for index in reversed(order) if number % 2 else order:
                command = benchmark.command(self.binary.name, names[index], settings, runs)
                text = self._adb(["shell", f"cd {FOLDER} && LD_LIBRARY_PATH=. {command}"], settings)
                figures = benchmark.parse(text)
                if "min_ms" not in figures and "median_ms" not in figures:
                    raise RunnerFailed(f"the output of {self.binary.name} cannot be read", tail(text))
                line = {"device": device, "threads": settings.threads, "runtime": benchmark.runtime, **figures}
                found[index].append(parse_line(json.dumps({**line, "iterations": runs}), models[index].name))
                time.sleep(self.pause_s)
        return tuple(merge(results) for results in found)

    def _device(self, settings: Settings) -> str:
        state = self._adb(["get-state"], settings).strip()
        if state != "device":
            raise RunnerFailed(f"the phone is {state or 'not there'}: allow USB debugging on it")
        model = self._adb(["shell", "getprop ro.product.model"], settings).strip()
        chip = self._adb(["shell", "getprop ro.board.platform"], settings).strip()
        return f"{model} ({chip})" if chip else model

    def _adb(self, arguments: Sequence[str], settings: Settings) -> str:
        target = ["-s", self.serial] if self.serial else []
        what = f"adb {arguments[0]}"
        return run([self.adb, *target, *arguments], timeout_s=settings.timeout_s, what=what)
