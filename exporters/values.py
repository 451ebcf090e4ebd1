"""How the values of one weight tensor are stored: exact, fp16, uniform codes with channel scales, or a codebook.

`quantize` fixes what is stored and, from exactly that, the tensor that a decoder must give back bit for bit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters import codebook

Array = NDArray[Any]
VALUE_CODES = ("f32", "f16", *(f"q{bits}" for bits in range(2, 9)), *(f"cb{bits}" for bits in range(2, 9)))

_LEAST_SCALE = 1e-20
_LEAST_HALF = 6e-8
_LARGEST_HALF = 65504.0


@dataclass(frozen=True, slots=True)
class Scale:
    """Channel scales `half * unit`: fp16 numbers of shape [1, .., C, .., 1] and a power of two."""

    half: NDArray[np.float16]
    unit: np.float32

    @property
    def decoded(self) -> NDArray[np.float32]:
        """What a decoder computes in fp32."""
        product: NDArray[np.float32] = self.half.astype(np.float32) * self.unit
        return product


@dataclass(frozen=True, slots=True)
class Quantized:
    """A tensor as it will be stored.

    Attributes:
        name: of the tensor.
        code: the value code, or "native" for stored as it is.
        restored: what the decoder gives, in the tensor's own shape and dtype.
        symbols: (N,) stored value of every element, zeros included: a number for native and f16, an integer code.
        kept: (N,) elements that a mask must keep; the others are restored as +0.
        scale: of uniform codes.
        centres: of codebooks.
    """

    name: str
    code: str
    restored: Array
    symbols: Array
    kept: NDArray[np.bool_]
    scale: Scale | None = None
    centres: NDArray[np.float32] | None = None

    @property
    def bits(self) -> int:
        """Bits of one stored value."""
        return code_bits(self.code, self.restored.dtype)


def code_bits(code: str, dtype: np.dtype[Any]) -> int:
    """Bits per stored value of `code` on a tensor of `dtype`."""
    if code == "native":
        return dtype.itemsize * 8
    return 16 if code == "f16" else int(re.sub(r"\D", "", code))


def effective_code(array: Array, wanted: str) -> tuple[str, str]:
    """(the code to use, why another one than wanted): lossy codes need finite numbers that fp16 can hold."""
    if array.dtype not in (np.float32, np.float16) or wanted == "f32":
        return "native", ""
    if wanted == "f16" and array.dtype == np.float16:
        return "native", ""
    if not np.isfinite(array).all():
        return "native", "it holds numbers that are not finite"
    if wanted == "f16" and float(np.abs(array).max(initial=0)) > _LARGEST_HALF:
        return "native", "it holds numbers too large for fp16"
    return wanted, ""


def quantize(
    name: str,
    array: Array,
    code: str,
    axis: int,
    *,
    masked: bool,
    reserve_zero: bool = False,
    importance: Array | None = None,
) -> Quantized:
    """Store `array` with `code` as `effective_code` gave it.

    Args:
        name: of the tensor.
        array: the weights, negative zeros already made positive.
        code: the value code.
        axis: the output-channel axis, for scales.
        masked: exact zeros are kept outside of the values (they do not enter a codebook).
        reserve_zero: code 0 of a codebook stands for 0.0 (for indexes with fillers, or without an index).
        importance: how much the squared error of each element matters to a codebook, in the shape of `array`.
    """
    if code == "native":
        return Quantized(name, code, array, array.reshape(-1), array.reshape(-1) != 0)
    if code == "f16":
        half = positive_zero(array.astype(np.float16))
        return Quantized(name, code, half.astype(array.dtype), half.reshape(-1), half.reshape(-1) != 0)
    if code.startswith("q"):
        return _uniform(name, array, code, axis)
    return _clustered(name, array, code, masked, reserve_zero, importance)


def positive_zero(array: Array) -> Array:
    """`array` with +0.0 in place of -0.0: a sign that no product shows, but that costs bytes."""
    if array.dtype.kind != "f" or not np.any((array == 0) & np.signbit(array)):
        return array  # no second copy of a large tensor
    return np.where(array == 0, array.dtype.type(0), array)


def _uniform(name: str, array: Array, code: str, axis: int) -> Quantized:
    """q = round(w / s) in -qm..qm with a scale per channel; the scale is rounded first."""
    largest = 2 ** (int(code[1:]) - 1) - 1
    scale = _channel_scale(array.astype(np.float32), axis, largest)
    codes = np.clip(np.rint(array.astype(np.float32) / scale.decoded), -largest, largest).astype(np.int64)
    restored = (codes.astype(np.float32) * scale.decoded).astype(array.dtype)
    return Quantized(name, code, restored, codes.reshape(-1), codes.reshape(-1) != 0, scale=scale)


def _channel_scale(array: NDArray[np.float32], axis: int, largest: int) -> Scale:
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    exact = np.maximum(np.abs(array).max(axis=others, keepdims=True) / largest, _LEAST_SCALE).astype(np.float64)
    unit = np.float32(2.0 ** np.floor(np.log2(exact.max())))
    return Scale(np.maximum(exact / float(unit), _LEAST_HALF).astype(np.float16), unit)


def _clustered(
    name: str, array: Array, code: str, masked: bool, reserve_zero: bool, importance: Array | None
) -> Quantized:
    flat = array.reshape(-1).astype(np.float32)
    outside = masked or reserve_zero
    kept = flat != 0 if outside else np.ones(len(flat), np.bool_)
    size = 2 ** int(code[2:])
    mass = None if importance is None else importance.reshape(-1)[kept]
    centres = positive_zero(codebook.fit(flat[kept], size - 1 if reserve_zero else size, mass))
    codes = codebook.assign(flat, centres)
    if reserve_zero:
        codes, centres = np.where(kept, codes + 1, 0), np.concatenate([np.zeros(1, np.float32), centres])
    restored = np.where(kept, centres[codes], np.float32(0)).astype(array.dtype).reshape(array.shape)
    return Quantized(name, code, restored, codes, kept, centres=centres)
