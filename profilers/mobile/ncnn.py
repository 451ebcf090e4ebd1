"""ncnn: pnnx converts the ONNX file, ncnn runs it on the CPU, one sample at a time (it has no batch axis)."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profilers.errors import MeasurementFailed
from profilers.mobile.base import CONVERT_SECONDS, Array, Inference, Signature, refusal, shaped
from profilers.runners.processes import run
from profilers.runners.result import RunnerFailed

_KINDS = {"float32": "f32", "float16": "f16", "int64": "i64", "int32": "i32"}


@dataclass(frozen=True, slots=True)
class Ncnn:
    """The runtime of most Android apps that ship their own."""

    name: str = "ncnn"
    title: str = "ncnn"
    modules: tuple[str, ...] = ("pnnx", "ncnn")
    install: str = "pip install ncnn pnnx"
    suffixes: tuple[str, ...] = (".param", ".bin")
    half: bool = True

    def convert(self, model: Path, signature: Signature, folder: Path, *, half: bool) -> tuple[Path, ...]:
        """See `MobileRuntime`; pnnx writes beside its input."""
        shapes = ",".join(map(_shape, signature.shapes, signature.dtypes))
        work = folder / "net.onnx"
        shutil.copyfile(model, work)
        command = [_converter(), str(work), f"inputshape={shapes}", f"fp16={int(half)}"]
        try:
            run(command, timeout_s=CONVERT_SECONDS, what="pnnx")
        except RunnerFailed as error:
            raise MeasurementFailed(refusal("ncnn's converter (pnnx)", error)) from error
        made = folder / "net.ncnn.param", folder / "net.ncnn.bin"
        if not all(path.is_file() for path in made):
            raise MeasurementFailed("ncnn's converter (pnnx) refuses the model: it wrote no files")
        return made

    def open(self, files: Sequence[Path], signature: Signature, threads: int) -> Inference:
        """See `MobileRuntime`; half-precision arithmetic off, so that answers can be compared."""
        ncnn: Any = importlib.import_module("ncnn")
        net = ncnn.Net()
        net.opt.num_threads = threads
        net.opt.use_vulkan_compute = False
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        if net.load_param(str(files[0])) or net.load_model(str(files[1])):
            raise MeasurementFailed("ncnn cannot load the files that its converter wrote")

        def once(inputs: Sequence[Array]) -> list[Array]:
            extractor = net.create_extractor()
            for place, array in enumerate(inputs):
                extractor.input(f"in{place}", ncnn.Mat(np.ascontiguousarray(array[0])))
            found = []
            for place in range(len(signature.outputs)):
                status, output = extractor.extract(f"out{place}")
                if status:
                    raise MeasurementFailed(f"ncnn cannot compute output {signature.outputs[place]}")
                found.append(np.array(output))
            return shaped(found, signature)

        return once


def _converter() -> str:
    """The pnnx program: inside its package, beside this Python, or on the path."""
    if importlib.util.find_spec("pnnx") is not None:
        return str(importlib.import_module("pnnx").EXEC_PATH)
    beside = Path(sys.executable).with_name("pnnx")
    return str(beside) if beside.is_file() else shutil.which("pnnx") or "pnnx"


def _shape(shape: tuple[int, ...], dtype: str) -> str:
    return f"[{','.join(map(str, shape))}]{_KINDS.get(dtype, 'f32')}"
