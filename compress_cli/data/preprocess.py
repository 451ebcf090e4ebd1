"""How an image becomes an input: size, scale, mean and standard deviation; where each of them came from.

An image that already has the input's size is taken as it is; any other is resized (shorter side) and centre-cropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress_cli.errors import InputError, UsageError
from compress_cli.tasks.taskfile import import_user_module

if TYPE_CHECKING:
    from compress_cli.checkpoint import LoadedModel
    from compress_cli.checkpoint.architecture import Architecture
    from compress_cli.config import RunConfig

Numbers = tuple[float, ...]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
NAMES = ("imagenet", "cifar10", "none")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """From a picture to a network's input.

    Attributes:
        name: `imagenet`, `cifar10`, `none`, a model's name, or the file of `transform`.
        size: (height, width) of the input; None keeps the image's own.
        resize: shorter side before the centre crop, for images of another size; None with `size` None.
        mean, std: per channel, of pixels scaled to 0..1.
        transform: the user's own function from a PIL image to a tensor; then nothing else applies.
        train_transform: the same for training images, where the user's file has one.
    """

    name: str
    size: tuple[int, int] | None
    resize: int | None
    mean: Numbers
    std: Numbers
    transform: Callable[[Any], Tensor] | None = None
    train_transform: Callable[[Any], Tensor] | None = None

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return len(self.mean)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (batch, channels, height, width) -> float32 input on the same device."""
        mean, std = _by_channel(self.mean, pixels.device), _by_channel(self.std, pixels.device)
        return pixels.float().div_(255).sub_(mean).div_(std)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form for the report."""
        size = None if self.size is None else list(self.size)
        return {
            "name": self.name,
            "size": size,
            "resize": self.resize,
            "mean": list(self.mean),
            "std": list(self.std),
        }


@lru_cache(maxsize=16)
def _by_channel(values: Numbers, device: torch.device) -> Tensor:
    """(1, channels, 1, 1) constants, made once on each device: making them anew would stop a GPU in every batch."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, -1, 1, 1)


def choose_preprocess(config: RunConfig, loaded: LoadedModel) -> tuple[Preprocess, str]:
    """The preprocessing of a run, and a sentence that says where it comes from.

    Raises:
        UsageError: an unknown name, or malformed numbers.
        InputError: the user's transform cannot be imported.
    """
    channels, size = _input_form(loaded)
    wanted = config.preprocess
    if wanted and (":" in wanted or wanted.endswith(".py")):
        return _user_transform(wanted, channels, size), f"inputs made by {wanted}"
    if wanted and wanted not in NAMES:
        raise UsageError(f"--preprocess {wanted!r} is unknown", f"valid: {', '.join(NAMES)}, or file.py:transform")
    preset, why = (_named(wanted, channels, size), f"--preprocess {wanted}") if wanted else _default(loaded, size)
    if len(preset.mean) not in (1, channels):
        preset, why = _named("none", channels, size), f"{channels}-channel input: pixels scaled to 0..1"
    mean = _numbers("--mean", config.mean, channels) or _spread(preset.mean, channels)
    std = _numbers("--std", config.std, channels) or _spread(preset.std, channels)
    if any(value <= 0 for value in std):
        raise UsageError(f"--std {config.std} is not positive", "pass positive numbers such as --std .229,.224,.225")
    resize = config.resize or preset.resize
    if resize is not None and size is not None and resize < min(size):
        raise UsageError(
            f"--resize {resize} is smaller than the input {size[0]}x{size[1]}", f"pass {min(size)} or more"
        )
    if config.mean or config.std:
        why += ", with --mean/--std as given"
    return Preprocess(preset.name, size, resize, mean, std), why


def _input_form(loaded: LoadedModel) -> tuple[int, tuple[int, int] | None]:
    """Channels and (height, width) of the network's first input; 3 and None when they are not known."""
    if not loaded.inputs:
        return 3, None
    first = loaded.inputs[0]
    if first.listed or len(first.shape) != 3 or first.shape[0] not in (1, 3):
        raise InputError(
            f"--data gives images, but the network's input {first.name!r} has the shape {list(first.shape)}",
            "write a task file that makes its inputs: --task FILE (see examples/two_task.py)",
        )
    return first.shape[0], (first.shape[1], first.shape[2])


def _named(name: str, channels: int, size: tuple[int, int] | None) -> Preprocess:
    if name == "none":
        return Preprocess(name, size, _default_resize(size), (0.0,) * channels, (1.0,) * channels)
    mean, std = IMAGENET if name == "imagenet" else CIFAR10
    return Preprocess(name, size, _default_resize(size), mean, std)


def _default_resize(size: tuple[int, int] | None) -> int | None:
    """Shorter side before the crop: the 256 to 224 of ImageNet practice, nothing extra for small inputs."""
    if size is None:
        return None
    return min(size) if min(size) < 128 else round(min(size) * 256 / 224)


def _default(loaded: LoadedModel, size: tuple[int, int] | None) -> tuple[Preprocess, str]:
    architecture = loaded.architecture
    own = _published(architecture, size) if architecture is not None else None
    if own is not None:
        return own, f"preprocessing of the published weights of {own.name}"
    return _named("imagenet", 3, size), "no --preprocess given: ImageNet's mean and standard deviation"


def _published(architecture: Architecture, size: tuple[int, int] | None) -> Preprocess | None:
    """What a torchvision or timm builder's own published weights were evaluated with."""
    source, _, name = architecture.reference.rpartition(":")
    if source == "torchvision":
        return _torchvision(name, size)
    if source == "timm":
        import timm

        known = timm.get_pretrained_cfg(name)
        if known is None:
            return None
        resize = None if size is None else round(min(size) / (known.crop_pct or 0.875))
        return Preprocess(name, size, resize, tuple(known.mean), tuple(known.std))
    return None


def _torchvision(name: str, size: tuple[int, int] | None) -> Preprocess | None:
    import torchvision

    with contextlib.suppress(ValueError, KeyError):
        weights = list(torchvision.models.get_model_weights(name))
        preset = weights[0].transforms() if weights else None
        mean, std = getattr(preset, "mean", None), getattr(preset, "std", None)
        if mean is None or std is None:
            return None
        crop, resize = getattr(preset, "crop_size", None), getattr(preset, "resize_size", None)
        same = size is not None and resize and crop and crop[0] == min(size)
        edge = resize[0] if resize and same else _default_resize(size)
        return Preprocess(name, size, edge, tuple(mean), tuple(std))
    return None


def _user_transform(reference: str, channels: int, size: tuple[int, int] | None) -> Preprocess:
    source, _, name = reference.partition(":")
    if not source.endswith(".py"):
        raise UsageError(f"--preprocess {reference!r} is not file.py:function", "pass path/to/file.py:transform")
    module = import_user_module(source, "--preprocess")
    name = name or "transform"
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{source} defines no function {name!r}", f"pass --preprocess {Path(source).name}:FUNCTION")
    training = getattr(module, "train_transform", None)
    return Preprocess(reference, size, None, (0.0,) * channels, (1.0,) * channels, function, training)


def _numbers(flag: str, text: str | None, channels: int) -> Numbers | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise UsageError(f"{flag} {text!r} is not a list of numbers", f"pass for example {flag} .5,.5,.5") from error
    if len(values) not in (1, channels):
        raise UsageError(f"{flag} {text!r} has {len(values)} numbers, the input {channels} channels", "pass one each")
    return _spread(values, channels)


def _spread(values: Numbers, channels: int) -> Numbers:
    return values if len(values) == channels else values[:1] * channels
