"""Which layers become two, and the reason for every other one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from decomposers.errors import BadWeights, NoMatch
from decomposers.folding import LayerShape
from decomposers.layers import Structure, find_layers
from tests.decomposers.nets import Attention, Mixed, Shared, counted_macs, images, seeded

IMAGE = images(1, 3, 16, 16)


def reasons(structure: Structure) -> dict[str, str]:
    return {item.name: item.reason for item in structure.skipped}


class Net(nn.Module):
    """A chain around one layer under test."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


def reason_for(layer: nn.Module) -> str:
    return reasons(find_layers(Net(layer), torch.zeros(1, 8)))["layer"]


def test_every_kind_of_layer_is_found_and_depthwise_is_named() -> None:
    model = seeded(Mixed())
    structure = find_layers(model, IMAGE)
    kinds = {layer.name: layer.kind for layer in structure.layers}
    assert kinds == {
        "stem": "Conv2d",
        "grouped": "Conv2d",
        "reflect": "Conv2d",
        "up": "ConvTranspose2d",
        "head": "Linear",
    }
    assert reasons(structure) == {"depthwise": "depthwise convolution: one channel per group, nothing to factor"}
    assert structure.params == sum(parameter.numel() for parameter in model.parameters())


def test_macs_equal_torchs_own_count() -> None:
    for model in (seeded(Mixed()), seeded(Shared())):
        structure = find_layers(model, IMAGE)
        assert structure.macs == counted_macs(model, IMAGE)
        skipped = sum(layer.macs for layer in structure.layers)
        assert skipped <= structure.macs


def test_one_module_under_two_names_is_one_layer() -> None:
    layers = {layer.name: layer for layer in find_layers(seeded(Shared()), IMAGE).layers}
    assert set(layers) == {"first", "middle", "left", "head"}
    assert layers["middle"].aliases == ("again",)
    assert len(layers["middle"].calls) == 2
    assert layers["left"].aliases == ("stages.0",)
    assert layers["left"].tied == ("right", "stages.1")
    assert layers["left"].names == ("left", "stages.0", "right", "stages.1")
    assert layers["left"].macs == 16 * 16 * 9 * (16 * 16 + 8 * 8)


def test_attention_is_left_alone_with_its_projections() -> None:
    structure = find_layers(seeded(Attention()), IMAGE)
    assert [layer.name for layer in structure.layers] == ["embed", "up", "down", "head"]
    assert reasons(structure) == {
        "attention": "attention reads its projection weights directly, a pair of layers has no such weight",
        "attention.out_proj": "attention reads its projection weights directly, a pair of layers has no such weight",
    }


def test_a_layer_whose_attributes_the_model_reads_is_left_alone() -> None:
    class Reader(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.linear(x, self.layer.weight))

    structure = find_layers(Reader(nn.Linear(8, 8)), torch.zeros(1, 8))
    assert reasons(structure) == {"layer": "the model reads its attribute `weight` directly"}


def test_layers_with_weights_from_elsewhere_are_left_alone() -> None:
    computed = "its weight is computed from other parameters (weight norm or another parametrization)"
    assert reason_for(parametrizations.weight_norm(nn.Linear(8, 8))) == computed
    with pytest.warns(FutureWarning):
        assert reason_for(weight_norm(nn.Linear(8, 8))) == computed
    assert reason_for(parametrizations.spectral_norm(nn.Linear(8, 8))) == computed


def test_hooks_subclasses_and_unused_layers_are_left_alone() -> None:
    class Own(nn.Linear):
        pass

    hooked = nn.Linear(8, 8)
    hooked.register_forward_hook(lambda *_: None)
    assert reason_for(hooked) == "it carries hooks"
    assert reason_for(Own(8, 8)) == "Own is a subclass of a plain layer"
    unused = nn.Identity()
    unused.aside = nn.Linear(8, 8)
    assert reasons(find_layers(Net(unused), torch.zeros(1, 8))) == {"layer.aside": "the model does not call it"}
    assert reasons(find_layers(nn.Linear(8, 8), torch.zeros(1, 8))) == {"": "the model itself is this Linear"}
    embedding = Net(nn.Embedding(3, 8))
    assert reasons(find_layers(embedding, torch.tensor([1]))) == {
        "layer": "Embedding is no convolution or linear layer"
    }


def test_a_weight_shared_with_something_else_is_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(8, 8)
            self.head = nn.Linear(8, 8, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x))

    structure = find_layers(Tied(), torch.tensor([1]))
    assert structure.layers == ()
    assert "shared with a Embedding" in reasons(structure)["head"]


def test_weights_shared_by_layers_with_and_without_bias_are_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    found = reasons(find_layers(Tied(), torch.zeros(1, 8)))
    assert set(found) == {"first", "second"}
    assert found["first"] == "its weight is shared between a layer with and one without bias"


def test_patterns_choose_layers_and_must_match() -> None:
    model = seeded(Mixed())
    assert "stem" not in [layer.name for layer in find_layers(model, IMAGE, ignore=["st*"]).layers]
    only = find_layers(model, IMAGE, only=["up", "head"])
    assert [layer.name for layer in only.layers] == ["up", "head"]
    assert reasons(only)["stem"] == "not among the layers asked for"
    with pytest.raises(NoMatch, match="groupd") as caught:
        find_layers(model, IMAGE, ignore=["groupd"])
    assert caught.value.close_matches[0] == "grouped"


def test_weights_that_are_not_finite_are_named() -> None:
    model = seeded(Mixed())
    model.up.weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(BadWeights, match="up: holds values that are not finite"):
        find_layers(model, IMAGE)


def test_the_model_is_as_before() -> None:
    model = seeded(Mixed()).train()
    before = dict(model.named_modules())
    find_layers(model, IMAGE)
    assert dict(model.named_modules()) == before
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_model_is_as_before_when_it_fails() -> None:
    model = seeded(Mixed()).train()
    before = dict(model.named_modules())
    with pytest.raises(RuntimeError):
        find_layers(model, images(1, 4, 16, 16))
    assert dict(model.named_modules()) == before
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("inputs", [(torch.zeros(2, 8),), {"x": torch.zeros(2, 8)}, torch.zeros(2, 8)])
def test_inputs_may_be_a_tensor_arguments_or_keywords(inputs: Any) -> None:
    structure = find_layers(Net(nn.Linear(8, 8)), inputs)
    assert [layer.shape for layer in structure.layers] == [LayerShape(8, 8), LayerShape(4, 8)]
    assert structure.macs == 2 * (64 + 32)
