"""Ten networks counted by us and by two counters that we did not write; every difference is explained to the digit.

torch's `FlopCounterMode` must agree exactly (fused attention off: it is blind to that). ptflops (its ATen backend) adds
one operation per output element of every layer with a bias: the difference must be exactly that. All on meta tensors.
"""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from profilers.complexity import Complexity, measure
from profilers.op_trace import unfused_attention

TEN = (
    "alexnet",
    "vgg11",
    "resnet18",
    "resnext50_32x4d",
    "mobilenet_v2",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "efficientnet_b0",
    "vit_b_16",
    "swin_t",
)
PUBLISHED = {
    "resnext50_32x4d": 4.231,
    "mobilenet_v2": 0.3008,
    "vit_b_16": 17.564,
    "swin_t": 4.491,
}  # GMAC, specification
SHAPE = (3, 224, 224)


def meta_model(name: str) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name).eval()


@pytest.mark.parametrize("name", TEN)
def test_two_independent_counters(name: str) -> None:
    model = meta_model(name)
    found = measure(model, (torch.zeros(1, *SHAPE),))
    with unfused_attention(), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *SHAPE, device="meta"))
    assert found.macs == counter.get_total_flops() // 2
    assert (found.uncounted, found.uncalled, found.traced) == ((), (), "meta")
    assert found.nonzero is None  # there are no values on the meta device
    if name in PUBLISHED:
        assert found.macs / 1e9 == pytest.approx(PUBLISHED[name], rel=3e-4)
    _compare_with_ptflops(model, found)


def _compare_with_ptflops(model: nn.Module, found: Complexity) -> None:
    ptflops = pytest.importorskip("ptflops", reason="the second counter is not installed (test extra)")
    with unfused_attention():
        theirs, params = ptflops.get_model_complexity_info(
            model,
            SHAPE,
            as_strings=False,
            backend="aten",
            print_per_layer_stat=False,
            verbose=False,
            input_constructor=lambda shape: torch.zeros(1, *shape, device="meta"),
        )
    assert params == found.params
    assert theirs - found.macs == _bias_additions(model, found)


def _bias_additions(model: nn.Module, found: Complexity) -> int:
    """Output elements of the counted layers that add a bias."""
    biased = {name.replace("bias", "weight") for name, _ in model.named_parameters() if name.endswith("bias")}
    return sum(layer.activations for layer in found.by_layer if layer.macs and layer.weight in biased)
