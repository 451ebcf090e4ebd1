"""The exact selection against brute force: numpy's stable sort over all magnitudes."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from pruners import selection
from pruners.keys import KINDS, first_key, sample, zero_below
from pruners.magnitude import (
    Candidates,
    InfeasibleSparsity,
    LayerCollapse,
    MagnitudeOptions,
    apply_,
    candidates_in_state_dict,
    count_zeros,
    plan,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def tied_net(seed: int, dtype: torch.dtype | None = None, tensors: int = 6) -> dict[str, Tensor]:
    """Random tensors rounded to few values, some already zero, some -0.0; mixed types without `dtype`."""
    rng = np.random.default_rng(seed)
    net = {}
    for index in range(tensors):
        values = rng.standard_normal((int(rng.integers(1, 40)), int(rng.integers(1, 40)))) * rng.choice([0.2, 1.0])
        rounded = np.round(values * 16) / 16  # many equal magnitudes, zeros of both signs
        kind = dtype or DTYPES[int(rng.integers(0, 3 if seed % 2 else 4))]
        net[f"layer{index}.weight"] = torch.from_numpy(rounded).to(kind)
    return net


def brute_force(net: dict[str, Tensor], k: int, floor: int = 0) -> dict[str, Tensor]:
    """Drop the k first of (abs, tensor, index) among what is not in a tensor's top `floor`; zeros count first."""
    magnitudes = [tensor.double().abs().reshape(-1).numpy() for tensor in net.values()]
    owner = np.concatenate([np.full(part.size, index) for index, part in enumerate(magnitudes)])
    every = np.concatenate(magnitudes)
    place = np.concatenate([np.arange(part.size) for part in magnitudes])
    order = np.lexsort((place, owner, every))
    room = np.array([max(0, part.size - min(part.size, floor)) for part in magnitudes])
    room = np.maximum(room, [int((part == 0).sum()) for part in magnitudes])
    drop = every == 0
    left, used = k - int(drop.sum()), np.array([int((part == 0).sum()) for part in magnitudes])
    for element in order:
        if left > 0 and not drop[element] and used[owner[element]] < room[owner[element]]:
            drop[element] = True
            used[owner[element]] += 1
            left -= 1
    parts = np.split(drop, np.cumsum([part.size for part in magnitudes])[:-1])
    return {
        name: torch.where(torch.from_numpy(part).view(tensor.shape), torch.zeros_like(tensor), tensor)
        for (name, tensor), part in zip(net.items(), parts, strict=True)
    }


def pruned(net: dict[str, Tensor], sparsity: str, **options: str) -> dict[str, Tensor]:
    copy = {name: tensor.clone() for name, tensor in net.items()}
    apply_(copy, plan(candidates_in_state_dict(copy), MagnitudeOptions(sparsity, **{"floor": "0", **options})))
    return copy


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(KINDS[tensor.dtype].torch_int)


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(bits(left[name]), bits(right[name])), name


def no_negative_zero(net: dict[str, Tensor]) -> bool:
    return not any(bool((torch.signbit(tensor) & (tensor == 0)).any()) for tensor in net.values())


def test_the_order_is_magnitude_then_tensor_then_index() -> None:
    net = {
        "a.weight": torch.tensor([[3.0, -1.0], [2.0, -2.0]]),
        "b.weight": torch.tensor([[-2.0, 5.0], [2.0, 0.5]]),
    }
    # ascending: 0.5, 1, then the twos of a (2, -2) and the first two of b
    expected = {"a.weight": [[3.0, 0.0], [0.0, 0.0]], "b.weight": [[0.0, 5.0], [2.0, 0.0]]}
    assert {name: tensor.tolist() for name, tensor in pruned(net, "0.625").items()} == expected


@pytest.mark.parametrize("dtype", [*DTYPES, None], ids=lambda dtype: "mixed" if dtype is None else str(dtype)[6:])
@pytest.mark.parametrize("sparsity", ["0.1", "0.5", "0.9", "0.98"])
def test_equals_brute_force_with_heavy_ties(dtype: torch.dtype | None, sparsity: str) -> None:
    for seed in range(6):
        net = tied_net(seed, dtype)
        total = sum(tensor.numel() for tensor in net.values())
        k = int(Fraction(sparsity) * total + Fraction(1, 2))
        expected = brute_force_canonical(net, k)
        if any(bool((net[name] != 0).any()) and not bool(tensor.any()) for name, tensor in expected.items()):
            with pytest.raises(LayerCollapse):
                pruned(net, sparsity)
            continue
        result = pruned(net, sparsity)
        assert_same_bits(result, expected)
        assert no_negative_zero(result)


def brute_force_canonical(net: dict[str, Tensor], k: int, floor: int = 0) -> dict[str, Tensor]:
    return {name: tensor + 0.0 for name, tensor in brute_force(net, k, floor).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None], ids=str)
@pytest.mark.parametrize("floor", [1, 7, 60, 400])
def test_floor_equals_brute_force(dtype: torch.dtype | None, floor: int) -> None:
    for seed in range(8):
        net = tied_net(seed, dtype)
        total = sum(tensor.numel() for tensor in net.values())
        largest = 1 - sum(min(tensor.numel() - int((tensor == 0).sum()), floor) for tensor in net.values()) / total
        for sparsity in ("0.5", "0.8", "0.95"):
            k = int(Fraction(sparsity) * total + Fraction(1, 2))
            if k > round(largest * total):
                with pytest.raises(InfeasibleSparsity) as refused:
                    pruned(net, sparsity, floor=str(floor))
                assert refused.value.largest == pytest.approx(largest, abs=1e-12)
                continue
            result = pruned(net, sparsity, floor=str(floor))
            assert_same_bits(result, brute_force_canonical(net, k, floor))
            for name, tensor in result.items():
                kept = int((tensor != 0).sum())
                assert kept >= min(int((net[name] != 0).sum()), floor)


def test_floor_zero_equals_plain_and_a_floor_that_does_not_bind_changes_nothing() -> None:
    net = {f"{index}.weight": torch.randn(50, 40, generator=torch.Generator().manual_seed(index)) for index in range(4)}
    assert_same_bits(pruned(net, "0.7", floor="0"), pruned(net, "0.7", floor="100"))


def test_the_largest_feasible_sparsity_is_accepted_and_the_next_refused() -> None:
    net = {"a.weight": torch.randn(10, 10), "b.weight": torch.randn(3, 3)}
    # floor 20: a keeps 20, b all 9 -> 80 of 109 may go
    copy = {name: tensor.clone() for name, tensor in net.items()}
    found = candidates_in_state_dict(copy)
    with pytest.raises(InfeasibleSparsity) as refused:
        plan(found, MagnitudeOptions("0.9", floor="20"))
    assert refused.value.largest == 80 / 109
    accepted = plan(found, MagnitudeOptions(repr(refused.value.largest), floor="20"))
    assert [cut.zeros_after for cut in accepted.cuts] == [80, 0]
    assert sum(apply_(copy, accepted).values()) == 80


def test_bare_selection_removes_all_but_one() -> None:
    tensors = [torch.randn(300, 300), torch.randn(200, 10)]
    threshold, cuts = selection.global_cuts(tensors, 92_000 - 1, 0)
    assert sum(cut.zeros_after for cut in cuts) == 91_999
    magnitudes = torch.cat([tensor.abs().flatten() for tensor in tensors]).sort().values
    assert threshold == magnitudes[-2].item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_equal_and_two_valued_tensors_use_bounded_memory_paths(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "LIMIT", 1000)  # forces the histogram path
    rng = np.random.default_rng(1)
    net = {
        "a.weight": torch.full((200, 100), 0.5).to(dtype),
        "b.weight": torch.from_numpy(rng.choice([-0.25, 0.5, 0.75], (100, 100))).to(dtype),
        "c.weight": torch.from_numpy(rng.standard_normal((300, 100))).to(dtype),
    }
    total = 60_000
    for k in (1, 3_000, 20_000, 30_000, 59_000):
        _, cuts = selection.global_cuts(list(net.values()), k, 0)
        expected = brute_force(net, k)
        assert [cut.zeros_after for cut in cuts] == [int((tensor == 0).sum()) for tensor in expected.values()]
        assert sum(cut.zeros_after for cut in cuts) == k < total


def test_agrees_with_torch_prune_when_nothing_ties() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(32, 10))
    ours = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result = pruned({name: tensor for name, tensor in ours.items() if tensor.dim() > 1}, "0.5")
    modules = [module for module in net if hasattr(module, "weight")]
    torch_prune.global_unstructured([(module, "weight") for module in modules], torch_prune.L1Unstructured, amount=952)
    assert sum(tensor.numel() for tensor in result.values()) == 1904
    for module, tensor in zip(modules, result.values(), strict=True):
        assert torch.equal(module.weight != 0, tensor != 0)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded_row"])
def test_memory_layout_does_not_matter(layout: str) -> None:
    plain = torch.from_numpy(np.round(np.random.default_rng(3).standard_normal((24, 10, 20, 20)) * 8) / 8).float()
    shaped = {
        "channels_last": lambda: plain.contiguous(memory_format=torch.channels_last),
        "transposed": lambda: plain.transpose(0, 3).contiguous().transpose(0, 3),
        "sliced": lambda: torch.cat([plain, plain + 1], dim=3)[..., :20],
        "expanded_row": lambda: torch.stack([plain, plain], dim=-1)[..., 0],
    }[layout]()
    assert not shaped.is_contiguous()
    assert torch.equal(shaped, plain)
    expected = {"a.weight": plain.clone()}
    apply_(expected, plan(candidates_in_state_dict(expected), MagnitudeOptions("0.777")))
    net = {"a.weight": shaped}
    decided = plan(candidates_in_state_dict(net), MagnitudeOptions("0.777"))
    assert apply_(net, decided) == {"a.weight": 74_592}  # 0.777 * 96,000
    assert_same_bits(net, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_first_key_bounds_any_value(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 1e-6, 0.1, 0.5, 1.0, 1.5, 3.14159, 60000.0], dtype=dtype)
    keys = [int(key) for key in bits(values)]
    for value, key in zip(values.double().tolist(), keys, strict=True):
        assert first_key(dtype, value, above=False) == key
        assert first_key(dtype, value, above=True) == key + 1
    assert first_key(torch.float32, 0.5 + 2.0**-30, above=False) == int(bits(torch.tensor([0.5]))[0]) + 1
    assert first_key(torch.bfloat16, 0.5 + 2.0**-30, above=False) == int(bits(torch.tensor([0.5]).bfloat16())[0]) + 1


def test_sample_takes_every_step_th_element_across_tensors() -> None:
    tensors = [
        torch.arange(1.0, 8.0).view(1, 7),
        torch.arange(8.0, 11.0).view(1, 3),
        torch.arange(11.0, 21.0).view(2, 5),
    ]
    keys = sample(tensors, KINDS[torch.float32], 3)
    assert keys.view(np.float32).tolist() == [2.0, 5.0, 8.0, 11.0, 14.0, 17.0, 20.0]


def test_zero_below_writes_plus_zero_and_counts() -> None:
    tensor = torch.tensor([[-0.0, 0.0, -1.0], [1.5, -2.0, 2.0]])
    assert zero_below(tensor, first_key(torch.float32, 1.5, above=True)) == 2
    assert tensor.tolist() == [[0.0, 0.0, 0.0], [0.0, -2.0, 2.0]]
    assert no_negative_zero({"t": tensor})


def test_count_zeros_counts_both_signs_and_passes_integers_over() -> None:
    net = {"w": torch.tensor([[0.0, -0.0, 1.0]]), "n": torch.zeros(3, dtype=torch.int64), "e": torch.empty(0, 2)}
    assert count_zeros(net) == {"w": 2, "e": 0}


THREADS = """
import hashlib, sys, torch
from pruners.magnitude import MagnitudeOptions, apply_, candidates_in_state_dict, plan
torch.set_num_threads(int(sys.argv[1]))
generator = torch.Generator().manual_seed(0)
net = {f"{i}.weight": (torch.randn(300, 301, generator=generator) * 32).round() / 32 for i in range(4)}
decided = plan(candidates_in_state_dict(net), MagnitudeOptions("0.9"))
apply_(net, decided)
digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in net.values()))
print(digest.hexdigest(), sum(int((t == 0).sum()) for t in net.values()), hash(decided.fingerprint))
"""


def test_one_and_eight_threads_give_the_same_bytes() -> None:
    outputs = []
    for threads in ("1", "8"):
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, "-c", THREADS, threads], capture_output=True, text=True, check=True, env=environment
        )
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert outputs[0].split()[1] == str(round(0.9 * 4 * 300 * 301))


def test_empty_candidates_type() -> None:
    assert Candidates((), ()).weights == 0
