"""The traceable part of torchvision's detectors: resized, normalised images -> backbone, FPN, heads, raw outputs.

A whole detector refuses `torch.export` (non-maximum suppression depends on values). Everything that holds weights runs
before or between such steps, so that the form here, which shares the detector's modules under the same names, says all
about its channels: feature maps go to the RoI heads through `roi_align` at fixed boxes, spread over the FPN's levels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruners.channels.tracing import mode_of

BOXES = 8
"""Boxes per image that the RoI heads see while they are traced, the same for every image."""

HEADS = ("box", "mask", "keypoint")

_PLACES = ((0.1, 0.1, 0.5, 0.4), (0.3, 0.2, 0.9, 0.8), (0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 0.8, 0.9))
_KINDS = ("GeneralizedRCNN", "RetinaNet", "FCOS", "SSD")


def is_detector(model: nn.Module) -> bool:
    """Whether this is one of torchvision's detectors, or a subclass."""
    return any(
        kind.__name__ in _KINDS and kind.__module__.startswith("torchvision.models.detection")
        for kind in type(model).__mro__
    )


def traceable(model: nn.Module, example_inputs: Sequence[Any]) -> tuple[nn.Module, tuple[Any, ...]]:
    """The form to trace and its inputs: a detector's raw heads with its images as one batch, else the model itself.

    The detector's modules are shared, not copied.
    """
    inputs = tuple(example_inputs)
    if not is_detector(model):
        return model, inputs
    form = RawHeads(model)
    if len(inputs) == 1 and isinstance(inputs[0], Tensor) and inputs[0].dim() == 4:
        return form, inputs
    return form, (batch_of(model, inputs[0]),)


def batch_of(model: nn.Module, images: Sequence[Tensor]) -> Tensor:
    """A detector's images resized, normalised and padded to one batch (B, C, H, W)."""
    resize: Any = model.transform
    training = resize.training
    try:
        with torch.no_grad():
            found: Tensor = copy.deepcopy(resize).eval()(list(images))[0].tensors
    finally:
        resize.training = training
    return found


class RawHeads(nn.Module):
    """A detector's backbone, FPN and heads: images (B, C, H, W) -> every head's raw output, flat."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        for name, child in detector.named_children():
            if name != "transform":
                self.add_module(name, child)
        self.training = detector.training

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs before decoding and suppression."""
        features: Any = self.get_submodule("backbone")(images)
        named: dict[str, Tensor] = {"0": features} if isinstance(features, Tensor) else dict(features)
        levels, parts = list(named.values()), dict[str, Any](self.named_children())
        if "rpn" not in parts:
            return tuple(_tensors(parts["head"](levels)))
        found, roi = list(_tensors(parts["rpn"].head(levels))), parts["roi_heads"]
        for kind in HEADS:
            pool = getattr(roi, f"{kind}_roi_pool", None)
            if pool is not None:
                inner = getattr(roi, f"{kind}_head")(_pooled(named, pool, images))
                found += _tensors(getattr(roi, f"{kind}_predictor")(inner))
        return tuple(found)


def head_rows(model: nn.Module, example_inputs: Sequence[Any]) -> dict[str, tuple[int, int]]:
    """RoI head -> (rows that it gets from the whole detector on the example, rows that it gets while traced).

    The first counts proposals, the second the fixed boxes of `RawHeads`. A head that the example does not reach (no
    detection, so no mask) is left out, and counts as it is traced.
    """
    form, batch = traceable(model, example_inputs)
    whole, traced = (_rows(model, each, inputs) for each, inputs in ((model, tuple(example_inputs)), (form, batch)))
    return {name: (whole[name], traced[name]) for name in traced if whole.get(name)}


def _rows(model: nn.Module, form: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    """Rows that each RoI module of the model gets while `form` runs in eval mode."""
    rows: dict[str, int] = {}
    hooks = []
    for name in [f"roi_heads.{kind}_{part}" for kind in HEADS for part in ("head", "predictor")]:
        if isinstance(getattr(getattr(model, "roi_heads", None), name.partition(".")[2], None), nn.Module):

            def note(module: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
                rows[name] = len(given[0])

            hooks.append(model.get_submodule(name).register_forward_pre_hook(note))
    try:
        with mode_of(form, "eval"), torch.no_grad():
            form(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping):
        for each in item.values():
            yield from _tensors(each)
    elif isinstance(item, (list, tuple)):
        for each in item:
            yield from _tensors(each)


def _pooled(features: Mapping[str, Tensor], pool: Any, images: Tensor) -> Tensor:
    """Pool fixed boxes from the levels the pool reads, each box from one of them: (B * boxes, C, h, w)."""
    roi_align = torch.ops.torchvision.roi_align  # loaded with the detector
    height, width = (pool.output_size,) * 2 if isinstance(pool.output_size, int) else pool.output_size
    maps = [features[name] for name in pool.featmap_names if name in features]
    each = max(BOXES // len(maps), 1)
    found = []
    for level, values in enumerate(maps):
        places = [_PLACES[(level + number) % len(_PLACES)] for number in range(each)]
        rois = _rois(places, images)
        scale = values.shape[-1] / images.shape[-1]
        found.append(roi_align(values, rois, scale, height, width, pool.sampling_ratio, False))
    return torch.cat(found)


def _rois(places: Sequence[Sequence[float]], images: Tensor) -> Tensor:
    """(B * boxes, 5): the image's number and the corners in pixels."""
    batch, _, height, width = images.shape
    corners = [[x * width, y * height, right * width, low * height] for x, y, right, low in places]
    boxes = torch.tensor(corners, dtype=images.dtype, device=images.device)
    which = torch.arange(batch, dtype=images.dtype, device=images.device).view(-1, 1, 1)
    rows = torch.cat([which.expand(-1, len(places), 1), boxes.expand(batch, -1, -1)], 2)
    return rows.reshape(-1, 5)
