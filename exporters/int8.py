"""Static int8 in QDQ form that fuses, with packed weights underneath.

ONNX Runtime's own quantiser places the Quantize/DequantizeLinear pairs: unsigned activations (with signed ones a Relu
is not absorbed and convolutions stay in float), signed symmetric weights with a scale per output channel, so that
pruned zeros stay exact zeros. The int8 weights are then packed: folding restores them and keeps DequantizeLinear, so
the runtime fuses the graph as before. Whether it does is read from its optimised graph.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from exporters import files
from exporters.errors import BadOnnxFile, first_line
from exporters.feeds import Feed
from exporters.folding import optimized_graph
from exporters.packing import LEAST_OPSET, PackResult, pack
from exporters.quiet import quiet
from exporters.unpacking import unpack

Array = NDArray[Any]
Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")

_FLOAT_PRODUCTS = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
_INT8_PRODUCTS = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger"}


@dataclass(frozen=True, slots=True)
class Fusion:
    """Products in ONNX Runtime's optimised graph by operator: those computed in int8, and those left in float."""

    int8: Mapping[str, int]
    float: Mapping[str, int]

    @property
    def complete(self) -> bool:
        """Every convolution and product runs in int8, and there is one."""
        return bool(self.int8) and not self.float


@dataclass(frozen=True, slots=True)
class Int8Result:
    """An int8 file: how it was calibrated, what ONNX Runtime fuses, and how its weights are packed."""

    method: Method
    reduce_range: bool
    calibration_inputs: int
    fusion: Fusion
    packing: PackResult
    qdq_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        fusion = {**asdict(self.fusion), "complete": self.fusion.complete}
        return {**asdict(self), "fusion": fusion, "packing": self.packing.to_dict()}


class _Reader:
    """What the quantiser asks for inputs."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        feed = next(self._left, None)
        return None if feed is None else dict(feed)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        while (feed := self.get_next()) is not None:
            yield feed

    def __next__(self) -> dict[str, Array]:
        feed = self.get_next()
        if feed is None:
            raise StopIteration
        return feed


def quantize_int8(
    source: Path,
    target: Path,
    feeds: Sequence[Feed],
    *,
    method: Method = "minmax",
    reduce_range: bool = False,
    packed: bool = True,
) -> Int8Result:
    """Write `source` (dense or packed, float32) to `target` as static int8.

    Args:
        source: the file; batch norms folded (as `onnx_export` does) so that scales fit.
        target: the file to write; not `source`.
        feeds: calibration inputs, at least one, none of them from the evaluation data.
        method: how the range of activations is chosen.
        reduce_range: 7-bit weights, for x86 processors without VNNI, whose 8-bit products can saturate.
        packed: whether the int8 weights are packed.

    Raises:
        BadOnnxFile: the file is unsound, its opset is below 13, or the quantiser refuses it.
        ValueError: no calibration input, or an unknown method.
    """
    if not feeds:
        raise ValueError("static int8 needs calibration inputs")
    if method not in METHODS:
        raise ValueError(f"unknown calibration method {method!r}; one of {', '.join(METHODS)}")
    with tempfile.TemporaryDirectory() as folder:
        plain, quantised = Path(folder) / "plain.onnx", Path(folder) / "qdq.onnx"
        unpack(source, plain)
        version = files.opset(files.read(plain))
        if version < LEAST_OPSET:
            raise BadOnnxFile(source, f"opset {version} has no per-channel quantisation (from {LEAST_OPSET} on)")
        _quantize(plain, quantised, feeds, method, reduce_range)
        size = sum(path.stat().st_size for path in quantised.parent.glob("qdq.onnx*"))
        found = fusion(quantised)
        if not found.int8:
            raise BadOnnxFile(source, "none of its products can be computed in int8 (float16 networks: use float32)")
        packing = pack(quantised, target) if packed else _unpacked(quantised, target)
    return Int8Result(method, reduce_range, len(feeds), found if not packed else fusion(target), packing, size)


def _unpacked(quantised: Path, target: Path) -> PackResult:
    written = files.write(files.read(quantised), target)
    size = sum(path.stat().st_size for path in written)
    return PackResult("dense", written, (), (), size, size, size, folded=None)


def _quantize(plain: Path, target: Path, feeds: Sequence[Feed], method: Method, reduce_range: bool) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    large = files.weight_bytes(files.read(plain)) > files.ONE_FILE_BYTES
    how = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}[method]
    try:
        with quiet():
            quantize_static(
                str(plain),
                str(target),
                _Reader(feeds),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                use_external_data_format=large,
                calibrate_method=getattr(CalibrationMethod, how),
            )
    except Exception as error:  # the quantiser documents no classes
        raise BadOnnxFile(plain.name, f"it cannot be quantised: {first_line(error)}") from error


def fusion(path: Path) -> Fusion:
    """What ONNX Runtime makes of the products of `path`.

    Raises:
        BadOnnxFile: ONNX Runtime cannot load it.
    """
    kinds = Counter(node.op_type for node in optimized_graph(path).node)
    int8 = {kind: kinds[kind] for kind in sorted(kinds) if kind in _INT8_PRODUCTS}
    floating = {kind: kinds[kind] for kind in sorted(kinds) if kind in _FLOAT_PRODUCTS}
    return Fusion(int8, floating)


def has_vnni() -> bool | None:
    """Whether this processor multiplies 8-bit numbers without saturation (x86 VNNI, ARM dot product); None: unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").lower()
    except OSError:
        return None
    flags = {word for line in text.splitlines() if line.startswith(("flags", "features")) for word in line.split()}
    return bool(flags & {"avx512_vnni", "avx_vnni", "asimddp", "i8mm"}) if flags else None


__all__ = ["METHODS", "Fusion", "Int8Result", "fusion", "has_vnni", "quantize_int8"]
