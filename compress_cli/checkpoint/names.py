"""Names of tensors: those that torchvision used in older releases, and the layer versions that torch keeps beside them.

torchvision's published weights partly carry the older names (DenseNet, ViT, the detection models); their modules rename
them while loading. A state dict's `_metadata` holds a version per layer, which such loading code asks for.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

_RENAMED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$"), r"\1\2"),
    (re.compile(r"^(encoder\.layers\.\w+\.mlp)\.linear_1\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^(encoder\.layers\.\w+\.mlp)\.linear_2\.(weight|bias)$"), r"\1.3.\2"),
    (re.compile(r"^(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
    (re.compile(r"^(.*fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    *((re.compile(rf"^(roi_heads\.mask_head)\.mask_fcn{i + 1}\.(\w+)$"), rf"\1.{i}.0.\2") for i in range(4)),
)
# RetinaNet's head: four convolutions with activations between them. FCOS has norms there, and these names still.
_RETINANET = tuple(
    (re.compile(rf"^(head\.\w+_head\.conv)\.{2 * i}\.(weight|bias)$"), rf"\1.{i}.0.\2") for i in range(4)
)
_FCOS_NAME = "head.classification_head.conv.1.weight"


def modern_names(names: Collection[str]) -> dict[str, str]:
    """Today's torchvision name for each name; the same one for any that is not an older torchvision's.

    Example: `features.denseblock1.denselayer1.norm.1.weight` is now `features.denseblock1.denselayer1.norm1.weight`.
    """
    rules = _RENAMED if _FCOS_NAME in names else (*_RENAMED, *_RETINANET)
    return {name: _renamed(name, rules) for name in names}


def _renamed(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        new, count = pattern.subn(replacement, name)
        if count:
            return new
    return name


def with_versions(
    tensors: Iterable[tuple[str, Tensor]], versions: Mapping[str, Any] | None
) -> OrderedDict[str, Tensor]:
    """A state dict as torch makes it: named tensors with the layers' versions as `_metadata` (None: without)."""
    state = OrderedDict(tensors)
    if versions is not None:
        state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return state


def versions_of(tensors: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The layers' versions of a state dict; None where there are none (a plain dict, safetensors)."""
    versions = getattr(tensors, "_metadata", None)
    return versions if isinstance(versions, Mapping) else None


def without_prefix(versions: Mapping[str, Any] | None, prefix: str) -> Mapping[str, Any] | None:
    """Versions whose layer names lost `prefix` (such as `module.`), as their tensors' names did."""
    if versions is None or not prefix:
        return versions
    return {
        name.removeprefix(prefix.rstrip(".")).removeprefix("."): value
        for name, value in versions.items()
        if name.startswith(prefix.rstrip("."))
    }
