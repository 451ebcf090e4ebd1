"""Torchvision's detectors lose channels in backbone, FPN and heads, and still detect and train."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from profilers.complexity import measure
from pruners.channels import (
    ChannelsPlan,
    CostModel,
    Groups,
    ScoreOptions,
    SelectionOptions,
    analyse,
    apply_,
    fit,
    make_plan,
    score,
    select_share,
)
from pruners.channels.detectors import RawHeads, traceable


class Pyramid(nn.Module):
    """Two levels of one width."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 16, 3, 2, 1)
        self.inner = nn.ModuleList([nn.Conv2d(12, 8, 1), nn.Conv2d(16, 8, 1)])

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        low = self.norm(self.first(x)).relu()
        high = self.second(low).relu()
        top = self.inner[1](high)
        up = nn.functional.interpolate(top, size=low.shape[-2:])
        return OrderedDict([("0", self.inner[0](low) + up), ("1", top)])


def two_stages() -> nn.Module:
    torch.manual_seed(0)
    return FasterRCNN(
        Pyramid(),
        min_size=32,
        max_size=32,
        rpn_anchor_generator=AnchorGenerator(((8,), (16,)), ((1.0,),) * 2),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 3, 2),
        box_head=TwoMLPHead(8 * 9, 16),
        box_predictor=FastRCNNPredictor(16, 3),
    )


def one_stage() -> nn.Module:
    torch.manual_seed(0)
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    return RetinaNet(Pyramid(), num_classes=3, anchor_generator=anchors, min_size=32, max_size=32)


def half(model: nn.Module) -> Any:
    def choose(found: Groups) -> ChannelsPlan:
        return make_plan(found, select_share(found, score(model, found, ScoreOptions()), 0.5, SelectionOptions()))

    return choose


IMAGES = ([torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))],)


@pytest.mark.parametrize("make", [two_stages, one_stage])
def test_detectors_lose_channels_everywhere_and_still_detect_and_train(make: Any) -> None:
    model = make().eval()
    before = copy.deepcopy(model.state_dict())
    groups = analyse(model, IMAGES)
    fitted = fit(model, IMAGES, groups, half(model))
    assert fitted.proof.passed
    assert {check.name for check in fitted.proof.checks} >= {"masked equivalence", "channel identity", "whole detector"}
    small = fitted.model
    assert type(small) is type(model)
    state = small.state_dict()
    cut = {name for name, tensor in state.items() if tensor.shape != before[name].shape}
    heads = ("rpn.head.conv", "roi_heads.box_head.fc6") if make is two_stages else ("head.classification_head.conv.0",)
    for part in ("backbone.first", "backbone.inner.0", *heads):
        assert any(name.startswith(part) for name in cut), part
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    boxes = [{"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "labels": torch.tensor([1])}]
    losses = small.train()(IMAGES[0], boxes)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in small.backbone.parameters())


@pytest.mark.parametrize("make", [two_stages, one_stage])
def test_macs_are_those_of_the_whole_detector(make: Any) -> None:
    """RoI heads run on the proposals that the example gives, not on the boxes of the trace."""
    model = make().eval()
    groups = analyse(model, IMAGES)
    cost = CostModel(groups)
    assert cost.macs == measure(model, IMAGES).macs
    fitted = fit(model, IMAGES, groups, half(model))
    assert fitted.plan.macs_after < fitted.plan.macs_before == cost.macs


def test_fpn_levels_share_their_width_with_every_head() -> None:
    groups = analyse(two_stages().eval(), IMAGES)
    fpn = groups.by_name()["backbone.inner.0"]
    places = {(member.tensor, member.dim): member.index.shape[1] for member in fpn.members}
    assert places[("backbone.inner.1.weight", 0)] == places[("rpn.head.conv.0.0.weight", 1)] == 1
    assert places[("roi_heads.box_head.fc6.weight", 1)] == 9  # 3 x 3 positions of each channel


def test_a_plan_cuts_a_fresh_detector_and_raw_heads_are_its_own_modules() -> None:
    model, fresh = two_stages().eval(), two_stages().eval()
    fitted = fit(model, IMAGES, analyse(model, IMAGES), half(model))
    apply_(fresh, ChannelsPlan.from_dict(fitted.plan.to_dict()))
    form, (batch,) = traceable(fresh, IMAGES)
    assert isinstance(form, RawHeads)
    assert batch.shape == (1, 3, 32, 32)
    wanted, _ = traceable(fitted.model, IMAGES)
    with torch.no_grad():
        pairs = zip(form.eval()(batch), wanted.eval()(batch), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)
    assert form.get_parameter("backbone.first.weight") is fresh.backbone.first.weight
