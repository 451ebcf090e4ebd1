"""LiteRT (TensorFlow Lite): `litert_torch` converts from PyTorch, so the ONNX graph becomes a module first."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profilers.errors import MeasurementFailed, first_line
from profilers.mobile.base import Array, Inference, Signature, convert_in_process, shaped

_CONVERT = """
import torch, litert_torch
from profilers.mobile.onnx_module import example_inputs, load_module
source, target = sys.argv[1:]
module = load_module(source)
with torch.no_grad():
    litert_torch.convert(module, example_inputs(source)).export(target)
"""


@dataclass(frozen=True, slots=True)
class LiteRt:
    """Google's runtime on Android; kernels of XNNPACK on the CPU."""

    name: str = "litert"
    title: str = "LiteRT"
    modules: tuple[str, ...] = ("litert_torch", "ai_edge_litert")
    install: str = "pip install litert-torch ai-edge-litert"
    suffixes: tuple[str, ...] = (".tflite",)
    half: bool = False

    def convert(self, model: Path, signature: Signature, folder: Path, *, half: bool) -> tuple[Path, ...]:
        """See `MobileRuntime`; weights stay in single precision."""
        target = folder / "net.tflite"
        convert_in_process(_CONVERT, [str(model), str(target)], what="LiteRT's converter")
        return (target,)

    def open(self, files: Sequence[Path], signature: Signature, threads: int) -> Inference:
        """See `MobileRuntime`."""
        module: Any = importlib.import_module("ai_edge_litert.interpreter")
        try:
            interpreter = module.Interpreter(str(files[0]), num_threads=threads)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise MeasurementFailed(f"LiteRT cannot load its own file: {first_line(error)}") from error
        places = [row["index"] for row in sorted(interpreter.get_input_details(), key=_order)]
        results = [row["index"] for row in interpreter.get_output_details()]

        def once(inputs: Sequence[Array]) -> list[Array]:
            for place, array in zip(places, inputs, strict=True):
                interpreter.set_tensor(place, np.ascontiguousarray(array))
            interpreter.invoke()
            return shaped([interpreter.get_tensor(place) for place in results], signature)

        return once


def _order(row: dict[str, Any]) -> str:
    """Inputs are named `serving_default_args_0:0`, ..."""
    return str(row["name"])
