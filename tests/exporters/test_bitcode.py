"""Bit-level codes: published byte vectors, every width, round trips, and the order-0 entropy they stay close to."""

from __future__ import annotations

import math

import numpy as np
import pytest

from exporters import bitcode as b

# The vectors of the format's specification: bytes worked out by hand.
EXAMPLE = np.array([3, 4, 11, 19])
MASK_EXAMPLE = np.array([0, 2, 3, 5, 6, 7, 9, 11, 12, 13, 14, 16, 17, 19])


def mask(density: float, size: int, seed: int = 0) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng(seed).random(size) < density)


def test_rice_vector() -> None:
    gap = b.gaps(EXAMPLE)
    assert gap.tolist() == [3, 0, 6, 7]
    assert [b.rice_bits(gap, k) for k in range(5)] == [20, 15, 14, 16, 20]
    index = b.encode_rice(EXAMPLE, 20)
    assert (index.k, index.count, index.length) == (2, 4, 8)
    assert index.unary.tobytes().hex() == "2b"
    assert [plane.tobytes().hex() for plane in index.remainders] == ["e3"]


def test_mask_vector() -> None:
    index = b.encode_rice(MASK_EXAMPLE, 20)
    assert (index.k, index.length, index.remainders) == (0, 24, ())
    assert index.unary.tobytes().hex() == "ed7a0b"


def test_code_vectors() -> None:
    assert b.pack_codes(np.array([1, 15, 7, 2, 9]), 4).tobytes().hex() == "f12709"
    assert [plane.tobytes().hex() for plane in b.split_planes(np.array([37, 0, 63, 18]), 6)] == ["052f", "72"]


@pytest.mark.parametrize(
    ("width", "expected"),
    [(0, []), (3, [2, 1]), (5, [4, 1]), (6, [4, 2]), (7, [4, 2, 1]), (8, [8]), (9, [8, 1]), (12, [8, 4]), (16, [8, 8])],
)
def test_planes(width: int, expected: list[int]) -> None:
    found = b.planes(width)
    assert [bits for bits, _ in found] == expected
    assert [shift for _, shift in found] == [sum(expected[:i]) for i in range(len(expected))]


@pytest.mark.parametrize("width", [-1, 17])
def test_impossible_width(width: int) -> None:
    with pytest.raises(ValueError, match="width"):
        b.planes(width)


@pytest.mark.parametrize("width", range(1, 13))
@pytest.mark.parametrize("count", [1, 7, 8, 33])
def test_planes_come_back(width: int, count: int) -> None:
    codes = np.random.default_rng(width).integers(0, 2**width, count)
    parts = b.split_planes(codes, width)
    assert sum(len(p) for p in parts) == sum(math.ceil(count * bits / 8) for bits, _ in b.planes(width))
    assert np.array_equal(b.join_planes(parts, width, count), codes)


@pytest.mark.parametrize("density", [1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [40_001, 65_536])
def test_positions_come_back(density: float, size: int) -> None:
    positions = mask(density, size)
    rice, gap8 = b.encode_rice(positions, size), b.encode_gap8(positions, size)
    assert np.array_equal(b.decode_rice(rice), positions)
    assert np.array_equal(b.decode_gap8(gap8), positions)
    assert rice.nbytes == len(rice.unary) + sum(map(len, rice.remainders))
    assert gap8.nbytes == gap8.count


@pytest.mark.parametrize("k", range(13))
def test_every_parameter_decodes(k: int) -> None:
    positions = np.array([0, 1, 5000, 5001, 9998])
    assert np.array_equal(b.decode_rice(b.encode_rice(positions, 9999, k)), positions)


@pytest.mark.parametrize(("first", "size"), [(0, 1), (255, 256), (256, 257), (999, 1000)])
def test_single_position(first: int, size: int) -> None:
    positions = np.array([first])
    assert np.array_equal(b.decode_rice(b.encode_rice(positions, size)), positions)
    assert np.array_equal(b.decode_gap8(b.encode_gap8(positions, size)), positions)


@pytest.mark.parametrize(("density", "published"), [(0.5, 2.0), (0.2, 3.69), (0.1, 4.75), (0.05, 5.79), (0.01, 8.11)])
def test_bits_per_nonzero_as_published(density: float, published: float) -> None:
    size = 500_000
    positions = mask(density, size)
    bits = 8 * b.encode_rice(positions, size).nbytes / len(positions)
    entropy = b.mask_entropy_bits(len(positions), size) / len(positions)
    assert bits == pytest.approx(published, rel=0.01)
    assert entropy - 1e-3 <= bits <= 1.026 * entropy


def test_overflow_is_refused() -> None:
    with pytest.raises(ValueError, match="overflow"):
        b.encode_rice(np.array([1, 2]), 2**31, 3)
    assert b.fits_int32(10, 2**31 - 100, 3)
    assert not b.fits_int32(13, 2**31 - 100, 3)


def test_entropy() -> None:
    assert b.entropy_bits(np.array([4, 4, 4, 4])) == 32.0
    assert b.entropy_bits(np.array([7, 0])) == 0.0
    assert b.entropy_bits(np.array([], np.int64)) == 0.0
    assert b.mask_entropy_bits(1, 8) == pytest.approx(math.log2(8) + 7 * math.log2(8 / 7))
