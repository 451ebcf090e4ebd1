"""Ranks of integer codes: fewer bytes than their width, close to the entropy, and given back by the decoder."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.bitcode import decode_numbers, encode_gap8, encode_numbers, encode_rice, entropy_bits
from exporters.decoder import Block
from exporters.layout import plan_layout
from exporters.ranks import encode_ranks, plan_ranks, stored_symbols
from exporters.values import Quantized, quantize
from tests.exporters.test_decoder import evaluate


def pruned(code: str, shape: tuple[int, ...] = (40, 300), seed: int = 0) -> Quantized:
    """The largest tenth of normal values: a hole round zero and a steep tail, as magnitude pruning leaves them."""
    values = np.random.default_rng(seed).normal(size=shape)
    array = np.where(np.abs(values) > 1.645, values, 0).astype(np.float32)
    if code == "int8":
        whole = np.rint(array * 30).astype(np.int8)
        return quantize(f"w{seed}", whole, "native", 0, masked=True)
    return quantize(f"w{seed}", array, code, 0, masked=True)


def index_of(*tensors: Quantized):  # type: ignore[no-untyped-def]
    kept = np.concatenate([tensor.kept for tensor in tensors])
    return encode_rice(np.flatnonzero(kept), len(kept))


def test_any_numbers_have_a_rice_code() -> None:
    numbers = np.array([0, 3, 0, 0, 17, 1])
    for k in range(5):
        code = encode_numbers(numbers, k)
        assert decode_numbers(code).tolist() == numbers.tolist()
        assert code.nbytes >= (int((numbers >> k).sum()) + len(numbers)) // 8
    assert encode_numbers(np.array([2, 0, 1]), 0).unary.tobytes().hex() == "2c"  # 001 1 01, the lowest bit first


@pytest.mark.parametrize("code", ["q8", "q5", "cb4", "cb6", "int8"])
def test_bytes_lie_between_the_entropy_and_the_width(code: str) -> None:
    tensor = pruned(code, (400, 300))
    index = index_of(tensor)
    plan = plan_ranks([tensor], index)
    assert plan is not None
    ranked = encode_ranks([tensor], index, plan.k)
    assert plan.nbytes == pytest.approx(ranked.stream.nbytes + sum(table.nbytes for table in ranked.tables), abs=8)
    counts = np.unique(tensor.symbols[tensor.kept], return_counts=True)[1]
    entropy, count = entropy_bits(counts) / 8, int(counts.sum())
    assert entropy < ranked.stream.nbytes < 1.05 * entropy
    assert ranked.stream.nbytes < count * tensor.bits / 8


@pytest.mark.parametrize("code", ["q8", "q3", "cb4", "cb8", "int8"])
@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("k", [0, 2, 5])
def test_decoders_give_ranked_tensors_back(code: str, opset: int, k: int) -> None:
    one = pruned(code)
    evaluate(Block((one,), index_of(one), k), opset)
    several = tuple(pruned(code, (8, 30 + 7 * seed), seed) for seed in range(3))
    evaluate(Block(several, index_of(*several), k), opset, reference=False)


@pytest.mark.parametrize("code", ["q6", "cb4"])
def test_without_an_index_and_with_fillers(code: str) -> None:
    dense = quantize("w", np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32), code, 0, masked=False)
    evaluate(Block((dense,), None, 3))
    tensor = quantize("w", pruned("q8").restored, code, 0, masked=True, reserve_zero=True)
    far = encode_gap8(np.flatnonzero(tensor.kept), tensor.kept.size)
    evaluate(Block((tensor,), far, 2))


def test_ranks_follow_the_frequency() -> None:
    """Codes 5 (five times), -2 (three times), 7 (once) get the ranks 0, 1, 2."""
    array = np.array([5, -2, 5, 7, 5, -2, 5, -2, 5, 0], np.int8)
    tensor = quantize("w", array, "native", 0, masked=True)
    ranked = encode_ranks([tensor], index_of(tensor), 1)
    assert decode_numbers(ranked.stream).tolist() == [0, 1, 0, 2, 0, 1, 0, 1, 0]
    assert [table.tolist() for table in ranked.tables] == [[0, 0, 5, -2, 7]]
    assert stored_symbols([tensor], index_of(tensor)).tolist() == array[:-1].tolist()


def test_floats_and_small_blocks_stay_as_they_are() -> None:
    exact = quantize("w", pruned("q8").restored, "native", 0, masked=True)
    assert plan_ranks([exact], index_of(exact)) is None
    with pytest.raises(ValueError, match="integer codes"):
        encode_ranks([exact], index_of(exact), 1)
    assert plan_layout([pruned("q8", (10, 20))]).blocks[0].rank_k is None
    assert plan_layout([pruned("q8", (400, 300))]).blocks[0].rank_k is not None
