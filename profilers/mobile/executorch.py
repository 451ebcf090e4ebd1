"""ExecuTorch: PyTorch's own runtime on phones, lowered to XNNPACK; the ONNX graph becomes a module first."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profilers.errors import MeasurementFailed, first_line
from profilers.mobile.base import Array, Inference, Signature, convert_in_process, shaped

_CONVERT = """
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from profilers.mobile.onnx_module import example_inputs, load_module
source, target = sys.argv[1:]
with torch.no_grad():
    program = torch.export.export(load_module(source), example_inputs(source))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
with open(target, "wb") as file:
    file.write(lowered.buffer)
"""


@dataclass(frozen=True, slots=True)
class ExecuTorch:
    """Files with the ending .pte."""

    name: str = "executorch"
    title: str = "ExecuTorch"
    modules: tuple[str, ...] = ("executorch", "torchao")
    install: str = "pip install executorch"
    suffixes: tuple[str, ...] = (".pte",)
    half: bool = False

    def convert(self, model: Path, signature: Signature, folder: Path, *, half: bool) -> tuple[Path, ...]:
        """See `MobileRuntime`; weights stay in single precision."""
        target = folder / "net.pte"
        convert_in_process(_CONVERT, [str(model), str(target)], what="ExecuTorch's converter")
        return (target,)

    def open(self, files: Sequence[Path], signature: Signature, threads: int) -> Inference:
        """See `MobileRuntime`; the number of threads is that of the process: the last one asked for counts."""
        torch: Any = importlib.import_module("torch")
        bindings: Any = importlib.import_module("executorch.extension.pybindings.portable_lib")
        runtime: Any = importlib.import_module("executorch.runtime")
        bindings._unsafe_reset_threadpool(threads)
        try:
            program = runtime.Runtime.get().load_program(files[0])
            method = program.load_method("forward")
        except RuntimeError as error:
            raise MeasurementFailed(f"ExecuTorch cannot load its own file: {first_line(error)}") from error

        def once(inputs: Sequence[Array], _keep: Any = program) -> list[Array]:
            found = method.execute([torch.from_numpy(array) for array in inputs])
            return shaped([value.numpy() for value in found], signature)

        return once
