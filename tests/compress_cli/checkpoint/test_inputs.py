"""Example inputs: flags in, tensors out; and what known builders are fed."""

from __future__ import annotations

import pytest
import torch

from compress_cli.checkpoint import (
    Architecture,
    InputSpec,
    default_input_shape,
    default_inputs,
    example_inputs,
    parse_input,
    parse_inputs,
)
from compress_cli.errors import UsageError


@pytest.mark.parametrize("text", ["3x32x32", "3X32X32", " 3,32,32 ", "3*32*32"])
def test_a_shape_is_sizes_joined_by_x(text: str) -> None:
    assert parse_inputs(text, ()) == (InputSpec("input", (3, 32, 32)),)


@pytest.mark.parametrize("text", ["3x0x32", "3x-1x32", "3xx32", "image", "3.5x2", "x", "1x" * 8 + "1"])
def test_wrong_shapes_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_inputs(text, ())
    assert f"--input-shape {text!r} is not a shape" in caught.value.message
    assert "--input-shape 3x224x224" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("ids=128:int64", InputSpec("ids", (128,), "int64")),
        ("3x8x8", InputSpec("input", (3, 8, 8))),
        ("image=3x8x8", InputSpec("image", (3, 8, 8))),
        ("x=3x8x8:fp16", InputSpec("x", (3, 8, 8), "float16")),
        ("x=4:bf16", InputSpec("x", (4,), "bfloat16")),
    ],
)
def test_named_inputs(text: str, spec: InputSpec) -> None:
    assert parse_input(text) == spec
    assert InputSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (["x=3x8x8:float99"], "unknown dtype 'float99'"),
        (["9x=3x8x8"], "'9x' is not a name"),
        (["x=3x8", "x=3x8"], "names 'x' twice"),
        (["x="], "is not a shape"),
    ],
)
def test_wrong_inputs_are_usage_errors(inputs: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_inputs(None, inputs)
    assert says in caught.value.message


def test_the_two_flags_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--input-shape and --input were both given"):
        parse_inputs("3x8x8", ["x=3x8x8"])


def test_example_tensors_follow_spec_batch_and_seed() -> None:
    specs = (InputSpec("image", (3, 8, 8)), InputSpec("ids", (5,), "int64"), InputSpec("half", (2,), "float16"))
    image, ids, half = example_inputs(specs, batch=4, seed=3)
    assert image.shape == (4, 3, 8, 8)
    assert (ids.dtype, half.dtype) == (torch.int64, torch.float16)
    assert set(ids.unique().tolist()) <= {0, 1}
    assert torch.equal(image, example_inputs(specs, batch=4, seed=3)[0])
    assert not torch.equal(image, example_inputs(specs, batch=4, seed=4)[0])


def test_detection_networks_take_a_list_of_images_in_range() -> None:
    specs = default_inputs(Architecture("torchvision:fasterrcnn_resnet50_fpn"))
    (images,) = example_inputs(specs, batch=2)
    assert [image.shape for image in images] == [(3, 480, 640)] * 2
    assert all(image.min() >= 0 and image.max() <= 1 for image in images)


@pytest.mark.parametrize(
    ("reference", "args", "shape"),
    [
        ("torchvision:resnet18", (), (3, 224, 224)),
        ("torchvision:inception_v3", (), (3, 299, 299)),
        ("torchvision:efficientnet_b3", (), (3, 300, 300)),
        ("torchvision:vit_b_16", (("image_size", 384),), (3, 384, 384)),
        ("torchvision:fcn_resnet50", (), (3, 520, 520)),
        ("torchvision:r3d_18", (), (3, 16, 112, 112)),
        ("torchvision:mvit_v1_b", (), (3, 16, 224, 224)),
        ("torchvision:ssd300_vgg16", (), (3, 300, 300)),
        ("net.py:make", (), None),
    ],
)
def test_known_builders_have_a_default_shape(
    reference: str, args: tuple[tuple[str, int], ...], shape: tuple[int, ...] | None
) -> None:
    assert default_input_shape(Architecture(reference, args)) == shape


def test_timm_networks_name_their_own_size() -> None:
    pytest.importorskip("timm")
    assert default_input_shape(Architecture("timm:resnet10t")) == (3, 176, 176)
    assert default_input_shape(Architecture("timm:vit_tiny_patch16_224", (("img_size", 96),))) == (3, 96, 96)
