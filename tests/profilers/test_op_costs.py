"""Arithmetic of single operators, expected values written as formulas (spec mobile.md section 6 gives the numbers)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from profilers.complexity import Complexity, measure
from profilers.op_costs import attention_macs, base_name, convolution_macs, matmul_macs


class Call(nn.Module):
    """A module whose forward is one function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs)  # type: ignore[operator]


def cost(function: object, *shapes: tuple[int, ...]) -> Complexity:
    return measure(Call(function), tuple(torch.zeros(shape) for shape in shapes))


def test_shapes_alone() -> None:
    assert convolution_macs((1, 64, 10, 10), (64, 8, 3, 3), (1, 64, 10, 10), transposed=False) == 64 * 8 * 9 * 100
    assert convolution_macs((1, 8, 10, 10), (8, 16, 3, 3), (1, 16, 21, 21), transposed=True) == 8 * 100 * 16 * 9
    assert matmul_macs((2, 5, 64), (2, 64, 32)) == 2 * 5 * 64 * 32
    assert matmul_macs((5, 64), (64,)) == 5 * 64
    assert attention_macs((2, 4, 10, 16), (2, 4, 7, 16), (2, 4, 7, 24)) == 2 * 4 * 10 * 7 * (16 + 24)


def test_in_place_names_lose_their_underscore_only() -> None:
    assert base_name("aten::relu_") == "aten::relu"
    assert base_name("aten::_softmax") == "aten::_softmax"
    assert base_name("aten::__ior__") == "aten::__ior__"


LAYERS = {
    "linear on 5 rows": (nn.Linear(64, 32), (5, 64), 5 * 64 * 32),
    "linear on a sequence": (nn.Linear(64, 32), (2, 5, 64), 2 * 5 * 64 * 32),
    "grouped conv": (nn.Conv2d(64, 64, 3, padding=1, groups=8), (1, 64, 10, 10), 64 * 8 * 9 * 100),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), (2, 6, 10, 10), 2 * 6 * 9 * 64),
    "dilated": (nn.Conv2d(3, 4, 3, dilation=2), (1, 3, 10, 10), 4 * 36 * 27),
    "transposed": (nn.ConvTranspose2d(8, 16, 3, stride=2), (1, 8, 10, 10), 8 * 100 * 16 * 9),
    "transposed, grouped": (nn.ConvTranspose2d(8, 16, 3, groups=4), (1, 8, 10, 10), 8 * 100 * 4 * 9),
    "1d": (nn.Conv1d(3, 5, 4), (2, 3, 11), 2 * 5 * 8 * 12),
    "3d": (nn.Conv3d(3, 5, 2), (1, 3, 4, 4, 4), 5 * 27 * 3 * 8),
    "lstm": (nn.LSTM(6, 5, batch_first=True), (2, 7, 6), 2 * 7 * 4 * 5 * (6 + 5)),
}


@pytest.mark.parametrize(("layer", "shape", "macs"), LAYERS.values(), ids=LAYERS)
def test_layer(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert measure(layer, (torch.zeros(shape),)).macs == macs


FUNCTIONS = {
    "mm": (torch.mm, ((3, 4), (4, 5)), 3 * 4 * 5),
    "bmm": (torch.bmm, ((2, 3, 4), (2, 4, 5)), 2 * 3 * 4 * 5),
    "matmul of 4 dimensions": (torch.matmul, ((2, 6, 3, 4), (2, 6, 4, 5)), 2 * 6 * 3 * 4 * 5),
    "addmm": (torch.addmm, ((3, 5), (3, 4), (4, 5)), 3 * 4 * 5),
    "baddbmm": (torch.baddbmm, ((2, 3, 5), (2, 3, 4), (2, 4, 5)), 2 * 3 * 4 * 5),
    "mv": (torch.mv, ((3, 4), (4,)), 3 * 4),
    "dot": (torch.dot, ((7,), (7,)), 7),
    "einsum": (
        lambda a, b: torch.einsum("bhqd,bhkd->bhqk", a, b),
        ((2, 4, 10, 16), (2, 4, 9, 16)),
        2 * 4 * 10 * 16 * 9,
    ),
    "attention": (F.scaled_dot_product_attention, ((2, 4, 10, 16),) * 3, 2 * 4 * 10 * 10 * (16 + 16)),
}


@pytest.mark.parametrize(("function", "shapes", "macs"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_function(function: object, shapes: tuple[tuple[int, ...], ...], macs: int) -> None:
    assert cost(function, *shapes).macs == macs


def test_multihead_attention_counts_projections_and_both_products() -> None:
    layer = nn.MultiheadAttention(64, 4, batch_first=True).eval()
    x = torch.zeros(2, 10, 64)
    rows = 2 * 10
    found = measure(layer, (x, x, x))
    assert found.macs == rows * 64 * 3 * 64 + 2 * 4 * 10 * 10 * (16 + 16) + rows * 64 * 64 == 353_280
    assert found.macs_by_weight() == {"in_proj_weight": rows * 64 * 3 * 64, "out_proj.weight": rows * 64 * 64}


def test_the_rule_leaves_out_pointwise_work_but_counts_its_traffic() -> None:
    found = cost(lambda x: torch.softmax(torch.relu(x) * 2, 1), (2, 8))
    assert (found.macs, found.uncounted) == (0, ())
    assert (found.bytes_read, found.bytes_written) == (3 * 2 * 8 * 4, 3 * 2 * 8 * 4)


def test_unknown_operators_are_listed_with_their_calls() -> None:
    found = cost(lambda x: torch.fft.fft2(torch.fft.fft2(x)).abs(), (1, 1, 8, 8))
    assert sum(calls for _, calls in found.uncounted) == 2
    assert {name.split("_")[1] for name, _ in found.uncounted} == {"fft"}
