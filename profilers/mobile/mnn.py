"""MNN: its compiled converter and its CPU backend.

The console script `mnnconvert` of the package reports arguments and model sizes to a remote service; the compiled entry
that it wraps (`_tools.mnnconvert`) does not, and is what is called here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from profilers.errors import MeasurementFailed
from profilers.mobile.base import Array, Inference, Signature, convert_in_process, shaped

_CONVERT = """
import _tools
source, target, *options = sys.argv[1:]
words = ["mnnconvert", "-f", "ONNX", "--modelFile", source, "--MNNModel", target, "--bizCode", "compress", *options]
if not _tools.mnnconvert(words):
    sys.exit("Error: the conversion failed")
"""


@dataclass(frozen=True, slots=True)
class Mnn:
    """Alibaba's runtime: the only one here that gains from zeros, when `sparse` is set.

    Attributes:
        sparse: let the converter store and run layers with many zeros as sparse ones.
    """

    name: str = "mnn"
    title: str = "MNN"
    modules: tuple[str, ...] = ("MNN", "_tools")
    install: str = "pip install MNN"
    suffixes: tuple[str, ...] = (".mnn",)
    half: bool = True
    sparse: bool = False

    def convert(self, model: Path, signature: Signature, folder: Path, *, half: bool) -> tuple[Path, ...]:
        """See `MobileRuntime`."""
        target = folder / "net.mnn"
        options = [*(["--fp16"] if half else []), *(["--detectSparseSpeedUp"] if self.sparse else [])]
        convert_in_process(_CONVERT, [str(model), str(target), *options], what="MNN's converter")
        if not target.is_file():
            raise MeasurementFailed("MNN's converter refuses the model: it wrote no file")
        return (target,)

    def open(self, files: Sequence[Path], signature: Signature, threads: int) -> Inference:
        """See `MobileRuntime`; precision `high`: single precision on every processor."""
        mnn: Any = importlib.import_module("MNN")
        configuration = ({"backend": "CPU", "numThread": threads, "precision": "high"},)
        manager = mnn.nn.create_runtime_manager(configuration)
        names = list(signature.inputs), list(signature.outputs)
        module = mnn.nn.load_module_from_file(str(files[0]), *names, runtime_manager=manager)
        if module is None:
            raise MeasurementFailed("MNN cannot load the file that its converter wrote")
        layout = mnn.expr.data_format.NCHW

        def once(inputs: Sequence[Array]) -> list[Array]:
            values = [mnn.expr.const(np.ascontiguousarray(array), list(array.shape), layout) for array in inputs]
            found = module.forward(values)
            return shaped([np.array(_plain(mnn, value).read()) for value in found], signature)

        return once


def _plain(mnn: Any, value: Any) -> Any:
    """`value` in the order N, C, H, W: MNN returns images in packs of four channels."""
    blocked = value.data_format == mnn.expr.data_format.NC4HW4
    return mnn.expr.convert(value, mnn.expr.data_format.NCHW) if blocked else value
