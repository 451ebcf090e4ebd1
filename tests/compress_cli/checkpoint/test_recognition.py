"""State dicts name their own torchvision builder: any task, other class counts and image sizes, fast, no memory."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from compress_cli.checkpoint import Architecture, build, load, recognise, recognition
from compress_cli.checkpoint import builder_index as index
from tests.compress_cli.checkpoint.checkpoint_files import weights

BUILDERS: list[tuple[str, dict[str, Any]]] = [
    ("resnet18", {"num_classes": 10}),
    ("resnet50", {}),
    ("alexnet", {"num_classes": 2}),
    ("vgg11_bn", {}),
    ("squeezenet1_1", {"num_classes": 5}),
    ("inception_v3", {"aux_logits": False}),
    ("googlenet", {"num_classes": 4}),
    ("mobilenet_v3_small", {"num_classes": 7}),
    ("efficientnet_v2_s", {}),
    ("convnext_tiny", {"num_classes": 3}),
    ("maxvit_t", {"num_classes": 9}),
    ("swin_v2_t", {"num_classes": 12}),
    ("vit_b_32", {"num_classes": 3, "image_size": 160}),
    ("vit_b_16", {"image_size": 384}),
    ("fcn_resnet50", {"aux_loss": True, "num_classes": 4}),
    ("deeplabv3_mobilenet_v3_large", {"num_classes": 2}),
    ("lraspp_mobilenet_v3_large", {"num_classes": 6}),
    ("fasterrcnn_resnet50_fpn_v2", {"num_classes": 5}),
    ("maskrcnn_resnet50_fpn", {"num_classes": 2}),
    ("keypointrcnn_resnet50_fpn", {"num_keypoints": 21}),
    ("retinanet_resnet50_fpn_v2", {"num_classes": 8}),
    ("ssdlite320_mobilenet_v3_large", {"num_classes": 3}),
    ("fcos_resnet50_fpn", {"num_classes": 4}),
    ("r3d_18", {"num_classes": 7}),
    ("swin3d_t", {"num_classes": 11}),
    ("mvit_v2_s", {}),
    ("raft_small", {}),
]


def state_of(builder: str, args: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Names and shapes of a builder's tensors, without memory."""
    return build(Architecture(f"torchvision:{builder}", tuple(args.items())), meta=True).state_dict()


@pytest.mark.parametrize(("builder", "args"), BUILDERS, ids=[name for name, _ in BUILDERS])
def test_builders_are_recognised_with_their_arguments(builder: str, args: dict[str, Any]) -> None:
    state = state_of(builder, args)
    begin = time.process_time()
    found = recognise(state)
    assert time.process_time() - begin < 2
    assert found.architecture is not None
    assert found.architecture.reference == f"torchvision:{builder}"
    assert dict(found.architecture.args) == args
    if "num_classes" in args:
        assert found.num_classes == args["num_classes"]


def test_a_default_argument_is_not_written_down() -> None:
    found = recognise(state_of("resnet18", {"num_classes": 1000}))
    assert str(found.architecture) == "torchvision:resnet18"
    assert found.num_classes == 1000


def test_twins_are_named() -> None:
    found = recognise(state_of("fasterrcnn_mobilenet_v3_large_320_fpn", {"num_classes": 3}))
    assert str(found.architecture) == "torchvision:fasterrcnn_mobilenet_v3_large_fpn num_classes=3"
    assert found.ambiguous_with == ("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn num_classes=3",)
    assert "pass --arch to choose that one" in found.notes[1]


def test_absent_counters_are_forgiven() -> None:
    state = state_of("resnet18", {"num_classes": 10})
    for name in [name for name in state if name.endswith("num_batches_tracked")]:
        del state[name]
    assert str(recognise(state).architecture) == "torchvision:resnet18 num_classes=10"


def test_a_changed_shape_is_not_recognised_but_explained() -> None:
    state = state_of("resnet18", {})
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    found = recognise(state)
    assert found.architecture is None
    assert found.closest[0] == ("torchvision:resnet18", 1.0)
    assert "conv1.weight is 64x1x7x7 in the file, 64x3x7x7 there" in found.advice
    assert "--arch path/to/net.py:factory" in found.advice


def test_an_extra_layer_is_not_recognised_but_named() -> None:
    state = state_of("resnet18", {}) | {"head.weight": torch.zeros(2, 2)}
    found = recognise(state)
    assert found.architecture is None
    assert "but the file has head.weight" in found.advice


def test_strangers_have_no_close_match() -> None:
    found = recognise(weights())
    assert (found.architecture, found.closest) == (None, ())
    assert "no torchvision builder has similar tensors" in found.advice


def test_inconsistent_class_counts_are_not_a_match() -> None:
    state = state_of("googlenet", {"num_classes": 4})
    state["aux1.fc2.weight"] = torch.zeros(5, 1024)
    assert recognise(state).architecture is None


def test_the_pretrained_transform_of_googlenet_is_mentioned() -> None:
    assert any("transform_input=true" in note for note in recognise(state_of("googlenet", {})).notes)


@pytest.mark.parametrize("builder", ["squeezenet1_1", "vit_b_32", "lraspp_mobilenet_v3_large"])
def test_the_index_describes_the_installed_torchvision(builder: str) -> None:
    stored = [item for item in index.read_index()[0] if item.builder == builder]
    assert stored == index.describe(builder)


def test_the_index_covers_every_builder() -> None:
    indexed = {item.builder for item in index.read_index()[0]}
    missing = set(index.floating_builders()) - indexed
    # a newer torchvision may have more; they are described on the fly
    assert not missing or not index.index_is_current()


def test_a_builder_missing_from_the_index_is_described_on_the_fly(monkeypatch: pytest.MonkeyPatch) -> None:
    known, codes = index.read_index()
    without = [item for item in known if item.builder != "mnasnet0_5"]
    monkeypatch.setattr(recognition, "read_index", lambda: (without, codes))
    found = recognise(state_of("mnasnet0_5", {"num_classes": 6}))
    assert str(found.architecture) == "torchvision:mnasnet0_5 num_classes=6"


def test_a_builder_that_changed_since_the_index_was_made_is_described_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    document = json.loads(index.INDEX_FILE.read_text(encoding="utf-8"))
    document["torchvision"] = "0.1.0"
    stale = tmp_path / "index.json"
    stale.write_text(json.dumps(document), encoding="utf-8")
    assert index.index_is_current()
    assert not index.index_is_current(stale)
    known, codes = index.read_index()
    changed = [item for item in known if item.builder != "squeezenet1_1"]
    changed.append(index.Candidate("squeezenet1_1", {}, "0" * 16, "0" * 16, {}, {}))
    codes["0" * 16] = index.name_codes(state_of("squeezenet1_1", {}))
    monkeypatch.setattr(recognition, "read_index", lambda: (changed, codes))
    assert recognise(state_of("squeezenet1_1", {})).architecture is None
    monkeypatch.setattr(recognition, "index_is_current", lambda: False)
    assert str(recognise(state_of("squeezenet1_1", {})).architecture) == "torchvision:squeezenet1_1"


def test_loading_a_recognised_file_says_so_and_runs(tmp_path: Path) -> None:
    net = build(Architecture("torchvision:squeezenet1_1", (("num_classes", 3),))).eval()
    torch.save({"state_dict": net.half().state_dict()}, tmp_path / "w.pt")
    loaded = load(tmp_path / "w.pt")
    assert str(loaded.architecture) == "torchvision:squeezenet1_1 num_classes=3"
    assert loaded.notes == ("recognised by its tensors as torchvision:squeezenet1_1 num_classes=3",)
    assert loaded.dtype == "float16"
    assert [spec.shape for spec in loaded.inputs] == [(3, 224, 224)]
    assert loaded.module is not None
    inputs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(inputs), net.float()(inputs))


def test_recognition_allocates_no_weights() -> None:
    state = state_of("vit_h_14", {})  # 2.5 GB of weights
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert str(recognise(state).architecture) == "torchvision:vit_h_14"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 100e6
