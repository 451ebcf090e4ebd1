"""Example inputs: from `--input-shape CxHxW`, from `--input NAME=SHAPE:dtype`, or what a known builder expects.

Shapes are given without the batch; tensors are made with a batch of 1, from a seeded generator.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress_cli.errors import UsageError

if TYPE_CHECKING:
    from compress_cli.checkpoint.architecture import Architecture

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
_SHORT = {"float": "float32", "fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
_SHORT |= {"int": "int64", "long": "int64", "double": "float64", "fp64": "float64"}


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input: its name, its shape without the batch, and its dtype's name.

    `listed`: the network takes a list of such tensors without a batch (torchvision's detection models).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    listed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "listed": self.listed}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> InputSpec:
        """Read what `to_dict` wrote."""
        shape = tuple(int(size) for size in document["shape"])
        return cls(str(document["name"]), shape, str(document["dtype"]), bool(document.get("listed", False)))


def parse_shape(text: str, flag: str = "--input-shape") -> tuple[int, ...]:
    """`3x32x32` as (3, 32, 32); commas work as well; no batch.

    Raises:
        UsageError: not positive whole numbers joined by `x`.
    """
    parts = re.split(r"[x×,*]", text.strip().lower())
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts) or len(parts) > 8:
        raise UsageError(
            f"{flag} {text!r} is not a shape", f"pass positive sizes joined by x, without the batch: {flag} 3x224x224"
        )
    return tuple(int(part) for part in parts)


def parse_input(text: str) -> InputSpec:
    """One `--input`: `NAME=SHAPE:dtype`, where name and dtype may be left out (`input`, float32).

    Example: `parse_input("ids=128:int64")` is `InputSpec("ids", (128,), "int64")`.

    Raises:
        UsageError: a wrong shape, name or dtype.
    """
    name, equals, rest = text.rpartition("=")
    name = name.strip() if equals else "input"
    shape, _, dtype = rest.partition(":")
    dtype = _SHORT.get(dtype.strip(), dtype.strip()) or "float32"
    if dtype not in DTYPES:
        raise UsageError(f"--input {text!r}: unknown dtype {dtype!r}", f"valid: {', '.join(DTYPES)}")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        raise UsageError(f"--input {text!r}: {name!r} is not a name", "pass for example --input image=3x224x224")
    return InputSpec(name, parse_shape(shape, "--input"), dtype)


def parse_inputs(input_shape: str | None, inputs: Sequence[str]) -> tuple[InputSpec, ...]:
    """The inputs that were asked for by flags; empty when none was.

    Raises:
        UsageError: both flags given, two inputs of one name, or a wrong value.
    """
    if input_shape and inputs:
        raise UsageError("--input-shape and --input were both given", "give all inputs with --input, repeated")
    if input_shape:
        return (InputSpec("input", parse_shape(input_shape)),)
    specs = tuple(parse_input(text) for text in inputs)
    names = [spec.name for spec in specs]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise UsageError(f"--input names {double!r} twice", "give each input its own name: --input NAME=SHAPE")
    return specs


def example_inputs(specs: Iterable[InputSpec], *, batch: int = 1, seed: int = 0) -> tuple[Any, ...]:
    """Random inputs for a call `module(*inputs)`; floats are normal, integers 0 or 1 (valid indices anywhere).

    A `listed` input becomes a list of `batch` tensors without a batch dimension.
    """
    generator = torch.Generator().manual_seed(seed)
    return tuple(_example(spec, batch, generator) for spec in specs)


def _example(spec: InputSpec, batch: int, generator: torch.Generator) -> Tensor | list[Tensor]:
    if spec.listed:
        # detection models take images in 0..1 and normalise them themselves
        return [torch.rand(spec.shape, generator=generator) for _ in range(batch)]
    shape = (batch, *spec.shape)
    dtype = DTYPES[spec.dtype]
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def default_inputs(architecture: Architecture) -> tuple[InputSpec, ...]:
    """The inputs that a torchvision or timm builder is meant for; empty for any other reference."""
    source, _, name = architecture.reference.rpartition(":")
    if source == "torchvision":
        return _torchvision_inputs(name, dict(architecture.args))
    if source == "timm":
        return _timm_inputs(name, dict(architecture.args))
    return ()


def default_input_shape(architecture: Architecture) -> tuple[int, ...] | None:
    """Shape of the first default input without the batch, such as (3, 224, 224); None when it is not known."""
    specs = default_inputs(architecture)
    return specs[0].shape if specs else None


def _torchvision_inputs(name: str, args: dict[str, Any]) -> tuple[InputSpec, ...]:
    import torchvision

    family = torchvision.models.get_model_builder(name).__module__.split(".")[2:]
    if "detection" in family:
        size = 300 if name.startswith("ssd300") else 320 if "320" in name else None
        return (InputSpec("image", (3, size, size) if size else (3, 480, 640), listed=True),)
    if "segmentation" in family:
        return (InputSpec("input", (3, 520, 520)),)
    if "optical_flow" in family:
        # the smallest that RAFT's four-level correlation pyramid takes
        return tuple(InputSpec(name, (3, 128, 128)) for name in ("image1", "image2"))
    if "video" in family:
        size = 224 if name.startswith(("mvit", "swin3d", "s3d")) else 112
        return (InputSpec("video", (3, 16, size, size)),)
    size = int(args.get("image_size") or args.get("input_size", (0,))[0] or _trained_size(name))
    return (InputSpec("input", (3, size, size)),)


def _trained_size(name: str) -> int:
    """Side of the images that the published ImageNet weights were evaluated on (no download); 224 when unknown."""
    import torchvision

    if name.startswith(("vit_", "maxvit", "quantized_")):
        return 299 if name == "quantized_inception_v3" else 224  # fixed by the builder's default, not by the weights
    weights = list(torchvision.models.get_model_weights(name))
    crop = getattr(weights[0].transforms(), "crop_size", None) if weights else None
    return int(crop[0]) if crop else 224


def _timm_inputs(name: str, args: dict[str, Any]) -> tuple[InputSpec, ...]:
    import timm

    config = timm.get_pretrained_cfg(name)
    shape = list(config.input_size if config is not None else (3, 224, 224))
    size = args.get("img_size")
    if size:
        shape[1:] = [size, size] if isinstance(size, int) else list(size)
    return (InputSpec("input", (int(args.get("in_chans", shape[0])), *shape[1:])),)
