"""Counting whole models: published numbers, an independent counter, attribution, and a model left untouched."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision
from torch import Tensor, nn

from profilers.complexity import _twin, measure
from profilers.errors import CountingFailed

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def cifar_resnet() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cifar_resnet_example", EXAMPLES / "cifar_resnet.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "params", "macs"), [("resnet20", 269_722, 40_551_040), ("resnet56", 853_018, 125_485_696)]
)
def test_cifar_resnets_as_published(name: str, params: int, macs: int) -> None:
    found = measure(getattr(cifar_resnet(), name)(), (torch.zeros(1, 3, 32, 32),))
    assert (found.params, found.macs, found.flops, found.batch) == (params, macs, 2 * macs, 1)
    assert (found.uncounted, found.uncalled, found.traced, found.notes) == ((), (), "meta", ())


def test_batch_scales_macs_and_not_params() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    one, three = (measure(model, (torch.zeros(batch, 3, 8, 8),)) for batch in (1, 3))
    assert (three.macs, three.params, three.batch) == (3 * one.macs, one.params, 3)


class Shared(nn.Module):
    """One layer called twice, one weight tied to a second layer, one layer never called."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4, bias=False)
        self.encode = nn.Linear(4, 6, bias=False)
        self.decode = nn.Linear(6, 4, bias=False)
        self.decode.weight = nn.Parameter(torch.ones(4, 6))
        self.tied = nn.Linear(4, 6, bias=False)
        self.tied.weight = self.encode.weight
        self.unused = nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.decode(self.encode(self.twice(self.twice(x)))))


def test_shared_and_tied_layers_count_every_call() -> None:
    found = measure(Shared(), (torch.zeros(2, 4),))
    assert found.macs_by_module() == {"twice": 2 * 2 * 16, "encode": 2 * 24, "decode": 2 * 24, "tied": 2 * 24}
    assert found.macs_by_weight() == {"twice.weight": 64, "encode.weight": 96, "decode.weight": 48}
    assert {layer.name: layer.calls for layer in found.by_layer}["twice"] == 2
    assert found.uncalled == ("unused",)
    assert found.params == 16 + 24 + 24 + 90


def test_sparse_macs_are_macs_times_density() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.Flatten(), nn.Linear(4 * 4, 5, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)[:3] = 0.0
        model[2].weight.fill_(1.0)
    found = measure(model, (torch.zeros(1, 2, 4, 4),))
    conv, linear = 4 * 4 * 2 * 9, 16 * 5
    assert (found.macs, found.sparse_macs) == (conv + linear, conv // 4 + linear)
    assert found.nonzero == 2 * 9 + 80


def test_weights_keep_their_name_through_views() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3 * 4, 8))

        def forward(self, x: Tensor) -> Tensor:
            first, second, third = self.weight.view(3, 4, 8).unbind(0)
            return x @ first.t() + x @ second.t() + torch.einsum("bi,oi->bo", x, third)

    found = measure(Split(), (torch.zeros(5, 8),))
    assert found.macs_by_weight() == {"weight": 3 * 5 * 8 * 4}
    assert found.sparse_macs == 0


def test_traffic_of_a_convolution() -> None:
    found = measure(nn.Conv2d(2, 4, 3, bias=False), (torch.zeros(1, 2, 5, 5),))
    assert (found.bytes_read, found.bytes_written, found.activations) == (4 * (50 + 72), 4 * 36, 36)


class Scarring(nn.Module):
    """A forward that leaves things behind: a cache, a counter in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache = x * 2
        return self.drop(self.layer(x))


def test_the_model_is_left_as_it_was() -> None:
    model = Scarring().train()
    model.drop.eval()
    before = copy.deepcopy(model.state_dict())
    measure(model, (torch.zeros(1, 4),))
    assert model.cache is None
    assert [model.training, model.layer.training, model.drop.training] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()


class Branching(nn.Module):
    """Control flow on values: shapes alone cannot run it."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(4, 2), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) if x.sum() > 0 else self.small(x)


def test_data_dependent_models_are_run_for_real() -> None:
    found = measure(Branching(), (torch.ones(1, 4),))
    assert (found.macs, found.traced, found.uncalled) == (32, "real", ("small",))
    assert "real tensors" in found.notes[0]
    assert measure(Branching(), (-torch.ones(1, 4),)).macs == 8


def test_a_model_that_does_not_run_is_refused_in_one_line() -> None:
    with pytest.raises(CountingFailed, match=r"does not run on its example inputs: .*shapes") as failure:
        measure(nn.Linear(4, 4), (torch.zeros(1, 5),))
    assert "\n" not in failure.value.reason
    assert not torch.nn.modules.module._global_forward_hooks


def test_a_model_that_cannot_be_copied_is_counted_and_restored() -> None:
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise RuntimeError("no copies")

    model = Stubborn(4, 4).train()
    assert measure(model, (torch.zeros(3, 4),)).macs == 48
    assert model.training


def test_no_memory_for_the_weights() -> None:
    """A twin holds shapes, or the caller's own parameters: never copies of them."""
    model = nn.Sequential(nn.Linear(4, 4))
    with _twin(model, on_meta=False) as twin:
        assert twin is not model
        assert twin[0].weight is model[0].weight
    with _twin(model, on_meta=True) as twin:
        assert twin[0].weight.is_meta
    assert not model[0].weight.is_meta


class OwnTensors(nn.Module):
    """A constant made inside the forward on the default device, and one kept as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.plain = torch.ones(4) * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.plain) + self.layer(torch.ones(2, 4)).sum(0)


def test_tensors_made_in_the_forward_need_fake_tensors() -> None:
    found = measure(OwnTensors(), (torch.zeros(3, 4),))
    assert (found.macs, found.traced, found.notes) == (3 * 16 + 2 * 16, "fake", ())


class Detector(nn.Module):
    """Boxes that survive non-maximum suppression, pooled: how many depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 2 * 2, 5)

    def forward(self, images: list[Tensor]) -> Tensor:
        features = self.backbone(torch.stack(images))
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.1], [4.0, 4.0, 8.0, 8.0]])
        kept = boxes[torchvision.ops.nms(boxes, features[0, 0, 0, :3], 0.5)]
        return self.head(torchvision.ops.roi_align(features, [kept], 2).flatten(1))


def test_detector_counts_on_real_tensors() -> None:
    found = measure(Detector(), ([torch.rand(3, 8, 8)],))
    assert (found.traced, found.batch) == ("real", 1)
    assert found.macs == 4 * 64 * 27 + 2 * 16 * 5  # two boxes survive
    assert found.uncounted == (("torchvision::nms", 1), ("torchvision::roi_align", 1))


def test_the_document_is_json() -> None:
    document = measure(nn.Linear(4, 3), (torch.zeros(1, 4),)).to_dict()
    assert json.loads(json.dumps(document))["by_layer"][0] == {
        "name": "",
        "op": "aten::addmm",
        "weight": "weight",
        "calls": 1,
        "macs": 12,
        "activations": 3,
        "bytes_read": 4 * (3 + 4 + 12),
        "bytes_written": 4 * 3,
    }
    assert {"params", "nonzero", "macs", "flops", "sparse_macs", "batch", "uncounted", "rule"} <= document.keys()
