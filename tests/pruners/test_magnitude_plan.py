"""Options, plans as documents, application, refusals, other scores."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruners.allocation import allocate
from pruners.lamp import sorted_scores
from pruners.magnitude import (
    BadFloor,
    BadOptions,
    BadPlan,
    BadSparsity,
    BadWeights,
    CubicSchedule,
    InfeasibleSparsity,
    LayerCollapse,
    MagnitudeOptions,
    MagnitudePlan,
    PlanMismatch,
    apply_,
    candidates_in_module,
    candidates_in_state_dict,
    plan,
)
from pruners.magnitude_options import count_zeros_asked, parse_floor


def net_of(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = (torch.randn(shape, generator=generator) * (index + 1) for index, shape in enumerate(shapes))
    return {f"l{index}.weight": tensor.to(dtype) for index, tensor in enumerate(made)}


def decide(net: dict[str, Tensor], sparsity: str, **options: str) -> MagnitudePlan:
    return plan(candidates_in_state_dict(net), MagnitudeOptions(sparsity, **options))


@pytest.mark.parametrize(
    ("text", "weights", "k"),
    [
        ("0.9", 268_336, 241_502),
        ("90%", 268_336, 241_502),
        ("0", 7, 0),
        ("0.5", 5, 3),
        ("0.15", 10, 2),
        ("1e-1", 10, 1),
    ],
)
def test_k_is_rounded_from_the_decimal(text: str, weights: int, k: int) -> None:
    assert count_zeros_asked(text, weights) == k


@pytest.mark.parametrize("text", ["1", "1.0", "100%", "-0.1", "nan", "inf", "abc", "", "0,9", "2"])
def test_bad_sparsity_is_refused(text: str) -> None:
    with pytest.raises(BadSparsity) as refused:
        MagnitudeOptions(text)
    assert repr(text) in str(refused.value)
    assert isinstance(refused.value, ValueError)


def test_floor_is_a_count_or_a_percentage() -> None:
    assert parse_floor("0.02%", 25_500_000) == 5100
    assert parse_floor("500", 10) == 500
    assert parse_floor("0", 10) == parse_floor("0%", 10) == 0
    assert parse_floor("0.02%", 300) == 1
    for text in ("0.5", "-1", "101%", "x", "nan"):
        with pytest.raises(BadFloor):
            MagnitudeOptions("0.5", floor=text)


def test_contradicting_and_unknown_choices_are_refused() -> None:
    for wrong in ({"scope": "layer", "score": "erk"}, {"scope": "tensor"}, {"score": "l1"}):
        with pytest.raises(BadOptions):
            MagnitudeOptions("0.5", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sparsity", ["0", "0.5", "0.9", "0.98"])
@pytest.mark.parametrize("score", ["magnitude", "lamp", "erk", "layer"])
def test_zeros_are_exact_again_changes_nothing_and_more_keeps_all_zeros(
    dtype: torch.dtype, sparsity: str, score: str
) -> None:
    chosen = {"scope": "layer"} if score == "layer" else {"score": score}
    net = net_of((40, 30), (10, 10, 3, 3), (5, 60), dtype=dtype)
    decided = decide(net, sparsity, floor="3", **chosen)
    k = count_zeros_asked(sparsity, 2400)
    assert decided.zeros_asked == decided.zeros_after == k
    assert apply_(net, decided) == {cut.name: cut.zeros_after for cut in decided.cuts}
    once = {name: tensor.clone() for name, tensor in net.items()}
    assert sum(int((tensor == 0).sum()) for tensor in net.values()) == k
    apply_(net, decided)  # the same plan
    apply_(net, decide(net, sparsity, floor="3", **chosen))  # a plan for the pruned weights
    assert all(torch.equal(net[name], once[name]) for name in net)
    apply_(net, decide(net, "0.985", floor="3", **chosen))
    assert all(bool((net[name][once[name] == 0] == 0).all()) for name in net)
    assert sum(int((tensor == 0).sum()) for tensor in net.values()) == 2364


def test_sparsity_zero_only_turns_negative_zeros_into_positive_ones() -> None:
    net = {"a.weight": torch.tensor([[-0.0, 1.0], [-3.0, 0.0]])}
    assert apply_(net, decide(net, "0", floor="0")) == {"a.weight": 2}
    assert net["a.weight"].tolist() == [[0.0, 1.0], [-3.0, 0.0]]
    assert not torch.signbit(net["a.weight"])[0, 0]


def test_zeros_already_present_count_and_are_never_revived() -> None:
    net = {"a.weight": torch.tensor([[0.0, 0.0, 0.0, 5.0], [0.0, 1.0, 2.0, 3.0]])}
    untouched = decide(net, "0.25", floor="0")
    assert (untouched.zeros_before, untouched.zeros_asked, untouched.zeros_after) == (4, 2, 4)
    assert "nothing is removed" in untouched.warnings[0]
    assert apply_(net, untouched) == {"a.weight": 4}
    assert net["a.weight"].tolist() == [[0.0, 0.0, 0.0, 5.0], [0.0, 1.0, 2.0, 3.0]]
    apply_(net, decide(net, "0.75", floor="0"))
    assert net["a.weight"].tolist() == [[0.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 3.0]]


@pytest.mark.parametrize("score", ["magnitude", "lamp", "erk"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_that_are_not_finite_are_refused_by_name(score: str, bad: float, dtype: torch.dtype) -> None:
    net = net_of((9, 9), (8, 8), dtype=dtype)
    net["l1.weight"][3, 3] = bad
    before = {name: tensor.clone() for name, tensor in net.items()}
    with pytest.raises(BadWeights) as refused:
        decide(net, "0.5", score=score)
    assert refused.value.tensor == "l1.weight"
    assert all(torch.equal(net[name], before[name]) or name == "l1.weight" for name in net)


def test_meta_weights_are_refused() -> None:
    with pytest.raises(BadWeights, match="meta"):
        plan(candidates_in_module(nn.Linear(3, 3, device="meta")), MagnitudeOptions("0.5"))


def test_collapse_is_an_error_and_thin_tensors_warn() -> None:
    net = {"small.weight": torch.full((10, 10), 0.01), "big.weight": torch.arange(1.0, 1001.0).view(10, 100)}
    with pytest.raises(LayerCollapse) as refused:
        decide(net, "0.5", floor="0")
    assert refused.value.tensors == ("small.weight",)
    kept = decide(net, "0.995", floor="1")
    assert [cut.zeros_after for cut in kept.cuts] == [99, 996]  # k = floor(0.995 * 1100 + 1/2) = 1095
    assert "big.weight keeps 4 of 1,000" in kept.warnings[0]


def test_a_tensor_that_was_all_zero_is_a_warning_not_a_collapse() -> None:
    net = {"head.weight": torch.zeros(10, 10), "body.weight": torch.randn(10, 10)}
    decided = decide(net, "0.75", floor="0")
    assert decided.warnings == ("head.weight was all zeros already",)
    assert sum(apply_(net, decided).values()) == 150


def test_plan_survives_json_and_applies_to_module_and_state_dict_alike() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5)).to(torch.bfloat16)
    loose = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decided = plan(candidates_in_module(model), MagnitudeOptions("0.8"), CubicSchedule(0.8, 0.9, 0, 10))
    document = json.loads(json.dumps(decided.to_dict(), allow_nan=False))
    assert (document["schema_version"], document["method"]) == (1, "magnitude")
    read = MagnitudePlan.from_dict(document)
    assert read == decided
    assert decided.zeros_asked == round(0.8 * 256)
    apply_(model, decided)
    apply_(loose, read)
    assert all(torch.equal(tensor, loose[name]) for name, tensor in model.state_dict().items())
    text = decided.explain()
    assert "256 weights in 2 tensors" in text
    assert "left out 1.weight" in text


@pytest.mark.parametrize(
    "change",
    [{"method": "pagcp"}, {"schema_version": 2}, {"cuts": None}, {"surplus": 1}, {"schedule": {"kind": "linear"}}],
    ids=str,
)
def test_documents_that_are_no_plan_are_refused(change: dict[str, object]) -> None:
    document = decide(net_of((4, 4)), "0.5").to_dict()
    with pytest.raises(BadPlan):
        MagnitudePlan.from_dict(document | change)


def test_a_plan_refuses_other_tensors_and_changes_nothing() -> None:
    net = net_of((6, 6), (4, 4))
    decided = decide(net, "0.5")
    wrong = {
        "missing": {"l0.weight": net["l0.weight"]},
        "shape": net | {"l1.weight": torch.randn(4, 5)},
        "float16": net | {"l1.weight": net["l1.weight"].half()},
        "weights": net | {"l1.weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(9))},
    }
    for word, tensors in wrong.items():
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        with pytest.raises(PlanMismatch, match=word):
            apply_(tensors, decided)
        assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


def test_a_copy_in_place_of_a_tied_tensor_is_refused() -> None:
    net = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    net["b"].weight = net["a"].weight
    decided = plan(candidates_in_module(net), MagnitudeOptions("0.5"))
    assert (decided.weights, decided.cuts[0].aliases) == (36, ("b.weight",))
    copies = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(PlanMismatch, match="now it is a copy"):
        apply_(copies, decided)
    apply_(net, decided)
    assert int((net["b"].weight == 0).sum()) == 18


def test_in_projection_weights_are_pruned() -> None:
    attention = nn.MultiheadAttention(16, 4)
    decided = plan(candidates_in_module(attention), MagnitudeOptions("0.9"))
    assert decided.names == ("in_proj_weight", "out_proj.weight")
    apply_(attention, decided)
    zeros = int((attention.in_proj_weight == 0).sum()) + int((attention.out_proj.weight == 0).sum())
    assert zeros == count_zeros_asked("0.9", 4 * 256)
    assert attention.in_proj_weight.requires_grad


def test_autograd_notices_the_change() -> None:
    layer = nn.Linear(4, 4)
    loss = (layer(torch.randn(2, 4, requires_grad=True)) ** 2).sum()
    apply_(layer, plan(candidates_in_module(layer), MagnitudeOptions("0.5")))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def lamp_by_definition(net: dict[str, Tensor]) -> dict[str, Tensor]:
    """Score every weight by the formula, with its own loop over the sorted order."""
    scores = {}
    for name, tensor in net.items():
        flat = tensor.double().reshape(-1)
        order = torch.from_numpy(np.argsort(flat.abs().numpy(), kind="stable"))
        squares = flat[order] ** 2
        ranked = torch.stack([squares[u] / squares[u:].sum() for u in range(flat.numel())])
        scores[name] = torch.empty_like(flat).scatter(0, order, ranked).view(tensor.shape)
    return scores


@pytest.mark.parametrize("sparsity", ["0.3", "0.8", "0.97"])
def test_lamp_follows_its_formula(sparsity: str) -> None:
    net = net_of((12, 10), (6, 5, 3, 3), (20, 4))
    scores = lamp_by_definition(net)
    k = count_zeros_asked(sparsity, 470)
    limit = torch.cat([part.flatten() for part in scores.values()]).sort().values[k - 1]
    before = {name: tensor.clone() for name, tensor in net.items()}
    apply_(net, decide(net, sparsity, score="lamp", floor="0"))
    for name, tensor in net.items():
        assert torch.equal(tensor, torch.where(scores[name] <= limit, 0.0, before[name]))


def test_lamp_keeps_one_weight_in_each_tensor_and_handles_huge_and_tiny_doubles() -> None:
    net = {"a.weight": torch.randn(10, 10).double() * 1e-200, "b.weight": torch.randn(10, 10).double() * 1e200}
    decided = decide(net, "0.99", score="lamp", floor="0")
    assert [cut.zeros_after for cut in decided.cuts] == [99, 99]
    assert sorted_scores(net["b.weight"])[-1] == 1.0
    assert sorted_scores(torch.zeros(2, 2)).tolist() == [0.0] * 4


def test_erk_follows_its_formula() -> None:
    net = net_of((64, 32, 3, 3), (128, 64), (10, 128), (4, 4))
    sizes, sums = [18_432, 8_192, 1_280, 16], [102, 192, 138, 8]
    kept = 27_920 - count_zeros_asked("0.98", 27_920)  # 558
    # densities are factor * sum / size; the last layer would have more than 1, so it stays dense
    assert Fraction(kept * 8, 440) < 16
    decided = decide(net, "0.98", score="erk", floor="0")
    exact = [Fraction(kept * part, 440) for part in sums]
    for cut, wanted, size in zip(decided.cuts, exact, sizes, strict=True):
        assert cut.numel == size
        assert abs(cut.numel - cut.zeros_after - wanted) < 1
    capped = decide(net, "0.9", score="erk", floor="0")
    kept = 27_920 - count_zeros_asked("0.9", 27_920)
    assert capped.cuts[3].zeros_after == 0  # full
    for cut, part in zip(capped.cuts[:3], sums[:3], strict=True):
        assert abs(cut.numel - cut.zeros_after - Fraction((kept - 16) * part, 432)) < 1


def test_layer_scope_is_uniform() -> None:
    decided = decide(net_of((10, 10), (7, 3), (5, 5)), "0.9", scope="layer", floor="0")
    assert [cut.zeros_after for cut in decided.cuts] == [90, 19, 22]  # 131.4 -> k = 131; 90, 18.9, 22.5
    assert decided.threshold is None


def test_layer_scope_works_round_zeros_and_floor() -> None:
    net = net_of((10, 10), (10, 10))
    net["l0.weight"].view(-1)[:80] = 0
    decided = decide(net, "0.6", scope="layer", floor="0")
    assert [cut.zeros_after for cut in decided.cuts] == [80, 40]
    with pytest.raises(InfeasibleSparsity) as refused:
        decide(net, "0.9", scope="layer", floor="40")
    assert refused.value.largest == 0.7


def test_allocation_is_exact_within_its_bounds() -> None:
    assert allocate([1, 1, 2], [0, 0, 0], [10, 10, 3], 10) == [4, 3, 3]
    assert allocate([5, 1], [0, 4], [10, 10], 6) == [2, 4]
    assert allocate([3], [0], [0], 0) == [0]
    rng = np.random.default_rng(0)
    for _ in range(50):
        shares, low = rng.integers(1, 50, 8).tolist(), rng.integers(0, 20, 8).tolist()
        high = [least + int(more) for least, more in zip(low, rng.integers(0, 60, 8), strict=True)]
        total = int(rng.integers(sum(low), sum(high) + 1))
        parts = allocate(shares, low, high, total)
        assert sum(parts) == total
        assert all(least <= part <= most for least, part, most in zip(low, parts, high, strict=True))
    with pytest.raises(ValueError, match="cannot split"):
        allocate([1], [0], [1], 2)
