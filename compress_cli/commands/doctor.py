"""`compress doctor`: versions, devices, ONNX Runtime providers, optional packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import TYPE_CHECKING, Any

from compress_cli import options as o
from compress_cli.console import Out
from compress_cli.quantities import format_bytes
from compress_cli.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

REQUIRED = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy", "safetensors", "typer", "rich")
OPTIONAL = {
    "timm": "models named timm:NAME (pip install 'compress-cli[timm]')",
    "onnxruntime-gpu": "latency on an NVIDIA GPU",
    "ncnn": "--format ncnn, latency in ncnn (pip install ncnn pnnx)",
    "MNN": "--format mnn, latency in MNN (pip install MNN)",
    "litert-torch": "--format litert, latency in LiteRT (pip install litert-torch)",
    "executorch": "--format executorch, latency in ExecuTorch (pip install executorch)",
}

EPILOG = "Example:  compress doctor --json"


def doctor(json: o.Json = False) -> int:
    """Report what this machine offers to compress; exit code 3 when a required package is missing."""
    document = examine()
    Out(as_json=json).result(document, lambda console: _render(document, console))
    return 0 if document["ok"] else 3


def examine() -> dict[str, Any]:
    """Versions and devices as one document; `ok` is False when a required package cannot be imported."""
    required = {name: _version(name) for name in REQUIRED}
    document: dict[str, Any] = {
        "schema_version": 1,
        "compress": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "required": required,
        "optional": {name: _version(name) for name in OPTIONAL},
        "problems": [f"{name} is not installed: pip install {name}" for name, v in required.items() if v is None],
    }
    document["torch_device"], document["providers"] = _torch_device(document), _providers(document)
    document["ok"] = not document["problems"]
    return document


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_device(document: dict[str, Any]) -> dict[str, Any] | None:
    try:
        import torch
    except (ImportError, OSError) as error:
        document["problems"].append(f"torch cannot be imported: {error}")
        return None
    if not torch.cuda.is_available():
        return {
            "kind": "cpu",
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        }
    properties = torch.cuda.get_device_properties(0)
    return {"kind": "cuda", "name": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}


def _providers(document: dict[str, Any]) -> list[str]:
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        document["problems"].append(f"onnxruntime cannot be imported: {error}")
        return []
    return list(onnxruntime.get_available_providers())


def _render(document: dict[str, Any], console: Console) -> None:
    lines = [
        f"compress {document['compress']}, Python {document['python']}, {document['system']}, {document['cores']} cores"
    ]
    lines += [f"  {name:<16}{version or 'MISSING'}" for name, version in document["required"].items()]
    lines += [
        f"  {name:<16}{version or 'not installed: ' + OPTIONAL[name]}" for name, version in document["optional"].items()
    ]
    device = document["torch_device"]
    if device and device["kind"] == "cuda":
        lines.append(f"GPU: {device['name']}, {format_bytes(device['memory'])}, CUDA {device['cuda']}")
    elif device:
        lines.append(f"GPU: none; fine-tuning runs on the CPU ({device['threads']} threads, {device['capability']})")
    lines.append(f"ONNX Runtime providers: {', '.join(document['providers']) or 'none'}")
    lines += [f"Problem: {problem}" for problem in document["problems"]] or ["Everything required is here."]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
