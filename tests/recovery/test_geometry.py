"""A layer's output must be its patches times its weight in matrix form, whatever the kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress_cli.recovery.trace import trace

CASES = {
    "linear": (nn.Linear(5, 4, bias=False), (6, 5)),
    "linear on tokens": (nn.Linear(5, 4, bias=False), (3, 7, 5)),
    "conv": (nn.Conv2d(3, 4, 3, bias=False), (2, 3, 8, 9)),
    "stride and padding": (nn.Conv2d(3, 4, 3, stride=(2, 1), padding=(1, 2), bias=False), (2, 3, 8, 9)),
    "dilation": (nn.Conv2d(3, 4, (3, 2), dilation=(2, 3), padding=2, bias=False), (2, 3, 9, 9)),
    "padding same": (nn.Conv2d(3, 4, (4, 3), padding="same", bias=False), (2, 3, 8, 9)),
    "reflect": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", bias=False), (2, 3, 8, 9)),
    "groups": (nn.Conv2d(6, 4, 3, groups=2, bias=False), (2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1, bias=False), (2, 4, 5, 5)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, bias=False), (2, 3, 9)),
    "conv3d": (nn.Conv3d(2, 3, (1, 3, 2), padding=1, bias=False), (2, 2, 4, 5, 4)),
    "transposed": (nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False), (2, 3, 4, 5)),
    "transposed, padded": (
        nn.ConvTranspose2d(3, 4, (3, 4), stride=(2, 3), padding=1, output_padding=(1, 0), bias=False),
        (2, 3, 4, 5),
    ),
    "transposed, padded beyond the kernel": (nn.ConvTranspose2d(3, 4, 2, padding=2, bias=False), (2, 3, 6, 6)),
    "transposed, dilated, groups": (nn.ConvTranspose1d(6, 4, 3, dilation=2, groups=2, bias=False), (2, 6, 7)),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_patches_times_matrix_is_the_layer(name: str) -> None:
    layer, size = CASES[name]
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    traced = trace(layer, (x,))
    (call,) = traced.calls()
    order = traced.needed([call.input], traced.inputs)
    fed = traced.evaluate(order, {traced.inputs[0]: x}, [call.input])[call.input]  # padded where the mode pads itself
    windows = call.geometry.windows(fed)
    product = call.geometry.rows(windows, None) @ call.geometry.matrix(layer.weight)
    torch.testing.assert_close(product, call.geometry.outputs(layer(x), None))
    chosen = torch.tensor([0, 3, 4])
    torch.testing.assert_close(call.geometry.rows(windows, chosen), call.geometry.rows(windows, None)[:, chosen])
    torch.testing.assert_close(
        call.geometry.outputs(layer(x), chosen), call.geometry.outputs(layer(x), None)[:, chosen]
    )


@pytest.mark.parametrize("name", CASES)
def test_matrix_form_is_undone_exactly(name: str) -> None:
    layer, size = CASES[name]
    (call,) = trace(layer, (torch.zeros(size),)).calls()
    matrix = call.geometry.matrix(layer.weight.detach())
    assert torch.equal(call.geometry.weight(matrix, layer.weight), layer.weight)
