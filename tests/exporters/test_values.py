"""Value codes: what is stored gives exactly the restored tensor, within the error that the code promises."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.values import VALUE_CODES, code_bits, effective_code, positive_zero, quantize


def weights(seed: int = 0, shape: tuple[int, ...] = (6, 4, 3, 3), density: float = 0.4) -> np.ndarray:
    random = np.random.default_rng(seed)
    channel = random.uniform(0.1, 10, (shape[0], *[1] * (len(shape) - 1)))
    return (random.normal(size=shape) * channel * (random.random(shape) < density)).astype(np.float32)


@pytest.mark.parametrize("bits", range(2, 9))
def test_uniform_error_is_half_a_step_of_its_channel(bits: int) -> None:
    array = weights()
    stored = quantize("w", array, f"q{bits}", 0, masked=True)
    largest = 2 ** (bits - 1) - 1
    assert stored.scale is not None
    step = stored.scale.decoded
    assert stored.scale.half.shape == (6, 1, 1, 1)
    assert (np.abs(stored.restored - array) <= 0.501 * step + np.abs(array) * 2e-3).all()
    assert np.abs(stored.symbols).max() <= largest
    assert np.array_equal(stored.restored, stored.symbols.reshape(array.shape).astype(np.float32) * step)
    assert np.array_equal(stored.kept, stored.symbols != 0)


def test_channel_axis_of_the_scale() -> None:
    assert quantize("w", weights(), "q8", 1, masked=True).scale.half.shape == (1, 4, 1, 1)
    assert quantize("w", weights(shape=(5, 7)), "q8", 1, masked=True).scale.half.shape == (1, 7)


def test_channels_of_zeros_and_of_very_different_size() -> None:
    array = weights()
    array[0] = 0
    array[1] *= 1e-6
    stored = quantize("w", array, "q8", 0, masked=True)
    assert not stored.restored[0].any()
    assert np.isfinite(stored.restored).all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("reserve", [False, True])
def test_codebook(bits: int, reserve: bool) -> None:
    array = weights()
    stored = quantize("w", array, f"cb{bits}", 0, masked=True, reserve_zero=reserve)
    assert stored.centres is not None
    assert len(stored.centres) == 2**bits
    assert np.array_equal(stored.restored != 0, array != 0)
    looked_up = stored.centres[stored.symbols].reshape(array.shape)
    assert np.array_equal(looked_up if reserve else np.where(array != 0, looked_up, 0), stored.restored)
    nearest = np.abs(array[..., None] - stored.centres[1 if reserve else 0 :]).min(-1)  # non-zeros stay non-zero
    kept = array != 0
    assert np.allclose(np.abs(stored.restored - array)[kept], nearest[kept], atol=1e-6)


def test_half_precision() -> None:
    array = weights()
    stored = quantize("w", array, "f16", 0, masked=True)
    assert np.array_equal(stored.restored, array.astype(np.float16).astype(np.float32))
    assert stored.symbols.dtype == np.float16


def test_native_is_exact() -> None:
    array = weights()
    assert quantize("w", array, "native", 0, masked=True).restored is array


@pytest.mark.parametrize(
    ("array", "wanted", "code", "reason"),
    [
        (np.ones(3, np.float32), "f32", "native", ""),
        (np.ones(3, np.float32), "f16", "f16", ""),
        (np.ones(3, np.float16), "f16", "native", ""),
        (np.ones(3, np.float16), "q8", "q8", ""),
        (np.array([1e6], np.float32), "f16", "native", "too large"),
        (np.array([np.nan, 1], np.float32), "cb4", "native", "not finite"),
        (np.array([np.inf], np.float32), "q8", "native", "not finite"),
        (np.ones(3, np.int8), "cb4", "native", ""),
    ],
)
def test_effective_code(array: np.ndarray, wanted: str, code: str, reason: str) -> None:
    found, why = effective_code(array, wanted)
    assert found == code
    assert reason in why
    assert bool(why) == bool(reason)


def test_negative_zeros_become_positive() -> None:
    array = np.array([-0.0, 0.0, -1.0], np.float32)
    assert positive_zero(array).tobytes() == np.array([0.0, 0.0, -1.0], np.float32).tobytes()


def test_bits() -> None:
    assert [code_bits(code, np.dtype(np.float32)) for code in VALUE_CODES[1:]] == [16, *range(2, 9), *range(2, 9)]
    assert code_bits("native", np.dtype(np.float16)) == 16
