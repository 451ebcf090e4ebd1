"""The machine that a measurement was taken on: what a reader needs in order to judge or repeat it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy")


def describe() -> dict[str, Any]:
    """CPU, cores, memory (bytes), system, package versions, ONNX Runtime providers and load average (1 minute).

    Values that the system does not tell are None. Nothing heavy is imported but ONNX Runtime.
    """
    facts = cpu_facts()
    return {
        "cpu": facts["model"],
        "instruction_sets": facts["instruction_sets"],
        "cores": available_cores(),
        "cores_total": os.cpu_count(),
        "memory": memory_bytes(),
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "providers": _providers(),
        "load_average": load_average(),
    }


def cpu_facts(path: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Name and known instruction sets of the first processor in a `cpuinfo` file; the platform's name without one."""
    fields: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    name = fields.get("model name") or fields.get("hardware") or platform.processor() or platform.machine()
    return {"model": name, "instruction_sets": [flag for flag in INSTRUCTION_SETS if flag in flags]}


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Physical memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def load_average() -> float | None:
    """Processes that ran or waited to run, averaged over the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return importlib.metadata.version("onnxruntime-gpu") if name == "onnxruntime" and _has_gpu_wheel() else None


def _has_gpu_wheel() -> bool:
    return any(found.name == "onnxruntime-gpu" for found in importlib.metadata.distributions(name="onnxruntime-gpu"))


def _providers() -> list[str]:
    try:
        import onnxruntime
    except (ImportError, OSError):
        return []
    return list(onnxruntime.get_available_providers())
