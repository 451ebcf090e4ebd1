"""Zeros and optimiser state stay zero through training, gradual pruning and resume; schedules."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruners.magnitude import MagnitudeOptions, apply_, candidates_in_module, count_zeros, plan
from pruners.masks import MaskMismatch, Masks
from pruners.schedules import CubicSchedule, OneShot, schedule_from_dict

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.05, amsgrad=True),
}


class Tied(nn.Module):
    """Convolution (channels_last), attention and two linear layers that share their weight."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.norm = nn.LayerNorm(8)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.conv(images).flatten(2).transpose(1, 2)  # (batch, places, 8)
        mixed = self.attention(tokens, tokens, tokens)[0]
        return self.second(self.first(self.norm(mixed)).relu()).mean()


def pruned() -> tuple[Tied, Masks]:
    model = Tied()
    decided = plan(candidates_in_module(model), MagnitudeOptions("0.7", floor="20"))
    apply_(model, decided)
    return model, Masks(model, decided.names)


def train(model: Tied, masks: Masks, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 6, 6, generator=generator)).backward()
        masks.mask_gradients_()
        optimizer.step()
        masks.constrain_(optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_set_is_kept_and_the_state_is_zero_there(name: str) -> None:
    model, masks = pruned()
    optimizer = OPTIMIZERS[name](model.parameters())
    before = {key: (value == 0).clone() for key, value in model.named_parameters() if key in masks.names}
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    train(model, masks, optimizer, 5)
    weights = dict(model.named_parameters())
    for key, zeros in before.items():
        assert torch.equal(weights[key] == 0, zeros)
        assert not torch.signbit(weights[key][zeros]).any()
        assert not torch.equal(weights[key], start[key])
        states = [value for value in optimizer.state[weights[key]].values() if value.shape == zeros.shape]
        assert len(states) == {"sgd": 1, "adamw": 3}[name]
        for state in states:
            assert not state[zeros].any()
            assert state[~zeros].any()
    assert sum(masks.zeros().values()) == sum(int(zeros.sum()) for zeros in before.values())


def test_momentum_is_masked_even_where_gradients_are_not() -> None:
    model, masks = pruned()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    model(torch.randn(2, 3, 6, 6)).backward()
    optimizer.step()
    weight = model.conv.weight
    assert optimizer.state[weight]["momentum_buffer"].count_nonzero() == weight.numel()
    masks.constrain_(optimizer)
    masked = weight.detach() == 0
    assert int(masked.sum()) == masks.zeros()["conv.weight"]
    assert not optimizer.state[weight]["momentum_buffer"][masked].any()


def test_infinite_and_negative_values_become_plus_zero() -> None:
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[0.0, 0.0, 2.0]])
    masks = Masks(layer, ["weight"])
    layer.weight.data = torch.tensor([[float("inf"), -4.0, float("nan")]])
    layer.weight.grad = torch.tensor([[float("nan"), -1.0, 3.0]])
    masks.constrain_()
    masks.mask_gradients_()
    assert layer.weight[0, :2].tolist() == layer.weight.grad[0, :2].tolist() == [0.0, 0.0]
    assert not torch.signbit(layer.weight[0, :2]).any()
    assert layer.weight.isnan()[0, 2]
    assert layer.weight.grad[0, 2] == 3.0


def test_nothing_is_hung_on_the_module() -> None:
    model, masks = pruned()
    masks.constrain_()
    assert model.state_dict().keys() == Tied().state_dict().keys()
    assert all(not module._forward_pre_hooks and not module._backward_hooks for module in model.modules())


def test_tied_names_are_one_parameter() -> None:
    model, _ = pruned()
    masks = Masks(model, ["first.weight", "second.weight"])
    assert masks.names == ("first.weight",)
    with pytest.raises(MaskMismatch, match="absent"):
        Masks(model, ["absent.weight"])


def test_averaged_copies_can_be_masked() -> None:
    model, masks = pruned()
    average = {key: torch.full_like(value, -1.0) for key, value in model.state_dict().items()}
    masks.apply_to_(average)
    assert {name: int((average[name] == 0).sum()) for name in masks.names} == masks.zeros()
    assert not (average["norm.weight"] == 0).any()
    with pytest.raises(MaskMismatch, match="shape"):
        masks.apply_to_({"conv.weight": torch.zeros(1)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_widths_of_weight_and_state(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 4, bias=False).to(dtype)
    layer.weight.data[0] = 0
    masks = Masks(layer, ["weight"])
    layer.weight.data.fill_(-1)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    optimizer.state[layer.weight]["wide"] = torch.ones(4, 4)  # a state in float32 beside another weight type
    optimizer.state[layer.weight]["step"] = torch.tensor(3.0)
    masks.constrain_(optimizer)
    assert (layer.weight == 0).sum(1).tolist() == [4, 0, 0, 0]
    assert optimizer.state[layer.weight]["wide"].sum(1).tolist() == [0, 4, 4, 4]
    assert optimizer.state[layer.weight]["step"] == 3


def test_gradual_pruning_follows_the_schedule_and_never_revives() -> None:
    model = Tied()
    schedule = CubicSchedule(0.0, 0.9, begin=0, end=8, every=2)
    first = plan(candidates_in_module(model), MagnitudeOptions("0.9"), schedule)
    assert (first.sparsity, first.zeros_asked) == ("0.9", 0)
    apply_(model, first)
    masks, optimizer = Masks(model, first.names), OPTIMIZERS["sgd"](model.parameters())
    total, known = first.weights, {name: torch.zeros(()) for name in first.names}
    for step in range(1, 11):
        train(model, masks, optimizer, 1, seed=step)
        if schedule.is_due(step):
            done = masks.reselect_(first.options_at(schedule.sparsity_at(step)), optimizer)
            assert done.zeros_after == int(schedule.sparsity_at(step) * total + 0.5)
        weights = dict(model.named_parameters())
        now = {name: weights[name].detach() == 0 for name in first.names}
        assert all(bool((now[name] >= known[name].bool()).all()) for name in now)
        known = now
    assert sum(count_zeros({name: weights[name] for name in first.names}).values()) == int(0.9 * total + 0.5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_continues_bit_for_bit(name: str) -> None:
    straight, masks = pruned()
    optimizer = OPTIMIZERS[name](straight.parameters())
    train(straight, masks, optimizer, 3, seed=1)
    buffer = io.BytesIO()
    torch.save([straight.state_dict(), optimizer.state_dict(), masks.state_dict()], buffer)
    train(straight, masks, optimizer, 3, seed=2)

    buffer.seek(0)
    weights, state, saved = torch.load(buffer, weights_only=True)
    resumed = Tied(seed=5)
    resumed.load_state_dict(weights)
    again = OPTIMIZERS[name](resumed.parameters())
    again.load_state_dict(state)
    other = Masks(resumed, masks.names)
    other.load_state_dict(saved)
    assert other.zeros() == masks.zeros()
    train(resumed, other, again, 3, seed=2)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in straight.state_dict().items())


def test_saved_masks_are_an_eighth_of_a_byte_per_weight_and_must_fit() -> None:
    model, masks = pruned()
    saved = masks.state_dict()
    assert saved["conv.weight"]["bits"].numel() == 216 // 8
    assert saved["conv.weight"]["bits"].dtype is torch.uint8
    for broken in ({}, saved | {"more.weight": saved["conv.weight"]}):
        with pytest.raises(MaskMismatch):
            masks.load_state_dict(broken)
    with pytest.raises(MaskMismatch, match="shape"):
        masks.load_state_dict(saved | {"conv.weight": {"shape": [1], "bits": torch.zeros(1, dtype=torch.uint8)}})
    assert masks.zeros() == Masks(model, masks.names).zeros()


def test_cubic_schedule_by_hand() -> None:
    ramp = CubicSchedule(0.0, 0.8, 10, 110, every=25)
    assert ramp.sparsity_at(0) == ramp.sparsity_at(10) == 0.0
    assert ramp.sparsity_at(60) == pytest.approx(0.8 - 0.8 * 0.125)
    assert ramp.sparsity_at(110) == ramp.sparsity_at(999) == 0.8
    assert [step for step in range(200) if ramp.is_due(step)] == [10, 35, 60, 85, 110]
    values = [ramp.sparsity_at(step) for step in range(120)]
    assert values == sorted(values)


def test_one_shot_and_documents() -> None:
    at_once = OneShot(0.9, 5)
    assert [at_once.sparsity_at(step) for step in (4, 5, 6)] == [0.0, 0.9, 0.9]
    assert [step for step in range(9) if at_once.is_due(step)] == [5]
    for schedule in (at_once, CubicSchedule(0.1, 0.9, 0, 5, 2)):
        assert schedule_from_dict(schedule.to_dict()) == schedule


@pytest.mark.parametrize(
    "wrong",
    [(0.5, 0.4, 0, 5), (0.0, 1.0, 0, 5), (0.0, 0.5, 5, 5), (-0.1, 0.5, 0, 5), (0.0, float("nan"), 0, 5)],
    ids=str,
)
def test_impossible_schedules_are_refused(wrong: tuple[float, float, int, int]) -> None:
    with pytest.raises(ValueError, match=r"must|needs|below"):
        CubicSchedule(*wrong)
