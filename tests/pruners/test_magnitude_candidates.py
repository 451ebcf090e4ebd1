"""Which tensors are ranked, by module types and by names alone, and the patterns that narrow them."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from pruners.magnitude import (
    Candidates,
    MagnitudeOptions,
    NoMatch,
    NothingToPrune,
    candidates_in_module,
    candidates_in_state_dict,
    plan,
)

MODELS = [
    "resnet18",
    "vit_b_16",
    "swin_t",
    "swin_v2_t",
    "convnext_tiny",
    "efficientnet_b0",
    "maxvit_t",
    "fasterrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "ssd300_vgg16",
    "deeplabv3_mobilenet_v3_large",
    "raft_small",
    "mvit_v2_s",
    "swin3d_t",
    "r3d_18",
    "googlenet",
]


class Nasty(nn.Module):
    """Every kind of parameter that must be told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.up = nn.ConvTranspose1d(4, 4, 2)
        self.bn = nn.BatchNorm2d(4)
        self.norm = nn.LayerNorm((4, 5))
        self.attention = nn.MultiheadAttention(8, 2)
        self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True)
        self.embedding = nn.Embedding(7, 8)
        self.pos_embedding = nn.Parameter(torch.zeros(1, 5, 8))
        self.lstm = nn.LSTM(3, 4, bidirectional=True)
        self.first = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.first.weight
        self.empty = nn.Linear(0, 4)
        self.register_buffer("table", torch.zeros(3, 3, dtype=torch.int64))


def names(found: Candidates) -> list[str]:
    return [item.name for item in found.ranked]


def reasons(found: Candidates) -> dict[str, str]:
    return {item.name: item.reason for item in found.left_out}


RANKED = [
    "conv.weight",
    "up.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "cross.q_proj_weight",
    "cross.k_proj_weight",
    "cross.v_proj_weight",
    "cross.out_proj.weight",
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "lstm.weight_ih_l0_reverse",
    "lstm.weight_hh_l0_reverse",
    "first.weight",
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_module_and_state_dict_agree_on_the_nasty_net() -> None:
    net = Nasty()
    by_type, by_name = candidates_in_module(net), candidates_in_state_dict(net.state_dict())
    assert names(by_type) == RANKED
    assert sorted(names(by_name)) == sorted(RANKED)
    assert by_type.weights == by_name.weights == sum(item.tensor.numel() for item in by_name.ranked)
    for found in (by_type, by_name):
        why = reasons(found)
        assert why["embedding.weight"] == "embedding"
        assert why["norm.weight"] == "normalisation"
        assert why["conv.bias"] == "bias"
        assert why["cross.bias_k"] == "bias"
        assert why["bn.weight"].startswith("fewer than two dimensions")
        assert why["empty.weight"] == "no elements"
        assert "pos_embedding" in why
        tied = next(item for item in found.ranked if item.name == "first.weight")
        assert tied.aliases == ("tied.weight",)
    assert reasons(by_name)["table"] == "element type int64"
    assert reasons(by_name)["bn.running_mean"] == "running statistic"


@pytest.mark.parametrize("name", MODELS)
def test_both_ways_agree_on_torchvision_models(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **extra(name))
    by_type, by_name = candidates_in_module(model), candidates_in_state_dict(model.state_dict())
    assert names(by_type) == names(by_name)
    assert [item.aliases for item in by_type.ranked] == [item.aliases for item in by_name.ranked]
    unknown = [item for item in by_type.left_out if "unknown" in item.reason]
    assert all(not item.name.endswith("weight") for item in unknown)
    assert by_type.weights > 0.9 * sum(parameter.numel() for parameter in model.parameters())


def extra(name: str) -> dict[str, object]:
    return {"weights_backbone": None} if any(part in name for part in ("rcnn", "ssd", "deeplab")) else {}


def test_in_projections_of_vit_are_a_quarter_of_the_weights() -> None:
    with torch.device("meta"):
        found = candidates_in_module(torchvision.models.vit_l_16())
    inside = sum(item.tensor.numel() for item in found.ranked if item.name.endswith("in_proj_weight"))
    assert inside == 24 * 3 * 1024 * 1024
    assert round(inside / found.weights, 3) == 0.249


def test_a_tensor_that_is_also_an_embedding_is_left_out() -> None:
    net = nn.ModuleDict({"head": nn.Linear(4, 9, bias=False), "body": nn.Linear(4, 4), "embedding": nn.Embedding(9, 4)})
    net["head"].weight = net["embedding"].weight
    for found in (candidates_in_module(net), candidates_in_state_dict(net.state_dict())):
        assert names(found) == ["body.weight"]
        assert reasons(found)["head.weight"] == "also an embedding (embedding.weight)"


def test_overlapping_and_expanded_memory_is_left_out() -> None:
    block = torch.randn(6, 4)
    tensors = {
        "a.weight": block[:4],
        "b.weight": block[2:],
        "c.weight": block[:4].t(),
        "d.weight": torch.ones(1, 4).expand(3, 4),
    }
    found = candidates_in_state_dict(tensors)
    assert names(found) == ["a.weight"]
    assert reasons(found)["b.weight"] == reasons(found)["c.weight"] == "shares part of its memory with a.weight"
    assert reasons(found)["d.weight"].startswith("expanded")


def test_odd_entries_of_a_state_dict_are_listed() -> None:
    tensors: dict[str, object] = {
        "fc.weight": torch.randn(2, 2),
        "fc.weight_orig": torch.randn(2, 2),
        "sparse.weight": torch.eye(3).to_sparse(),
        "z.weight": torch.zeros(2, 2, dtype=torch.complex64),
        "epoch": 3,
        "weight": torch.randn(3, 3),
    }
    found = candidates_in_state_dict(tensors)
    assert names(found) == ["fc.weight", "weight"]
    why = reasons(found)
    assert "re-parametrised" in why["fc.weight_orig"]
    assert why["sparse.weight"] == "layout torch.sparse_coo"
    assert why["z.weight"] == "element type complex64"
    assert why["epoch"] == "not a tensor"


def test_lazy_parameters_are_listed_not_touched() -> None:
    found = candidates_in_module(nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2)))
    assert names(found) == ["1.weight"]
    assert reasons(found)["0.weight"] == "not initialised yet"


def test_a_subclass_counts_and_a_parametrisation_does_not() -> None:
    class Scaled(nn.Linear):
        pass

    net = nn.Sequential(Scaled(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    found = candidates_in_module(net)
    assert names(found) == ["0.weight"]
    assert all("re-parametrised" in why for name, why in reasons(found).items() if name.startswith("1.param"))


def test_include_ranks_what_is_asked_for() -> None:
    net = Nasty()
    found = candidates_in_module(net, include=("embedding",))
    assert "embedding.weight" in names(found)
    assert "pos_embedding" not in names(found)
    with pytest.raises(NoMatch, match="nothing_here"):
        candidates_in_module(net, include=("nothing_here",))


def options(**patterns: tuple[str, ...]) -> MagnitudeOptions:
    return MagnitudeOptions("0.5", floor="0", **patterns)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"only": ("layer?",)}, ["layer1.0.weight", "layer2.weight"]),
        ({"only": ("*.weight",)}, ["layer1.0.weight", "layer2.weight", "head.weight"]),
        ({"ignore": ("head",)}, ["layer1.0.weight", "layer2.weight"]),
        ({"only": ("layer*",), "ignore": ("layer1.0",)}, ["layer2.weight"]),
        ({"ignore": ("*.bias",)}, ["layer1.0.weight", "layer2.weight", "head.weight"]),
    ],
)
def test_patterns_name_tensors_or_modules(patterns: dict[str, tuple[str, ...]], expected: list[str]) -> None:
    tensors = {
        "layer1.0.weight": torch.randn(8, 8),
        "layer1.0.bias": torch.randn(8),
        "layer2.weight": torch.randn(8, 8),
        "head.weight": torch.randn(8, 8),
    }
    decided = plan(candidates_in_state_dict(tensors), options(**patterns))
    assert list(decided.names) == expected
    assert decided.weights == 64 * len(expected)
    assert {item.name for item in decided.left_out} == tensors.keys() - set(expected)


def test_patterns_that_match_nothing_name_the_closest() -> None:
    found = candidates_in_state_dict({"layer1.conv.weight": torch.randn(4, 4), "layer1.conv.bias": torch.randn(4)})
    with pytest.raises(NoMatch) as refused:
        plan(found, options(ignore=("layer1.cnv",)))
    assert refused.value.close_matches[0] == "layer1.conv"
    assert "layer1.cnv" in str(refused.value)
    with pytest.raises(NoMatch, match="only tensors that are not ranked"):
        plan(found, options(only=("*.bias",)))
    with pytest.raises(NothingToPrune):
        plan(found, options(ignore=("*",)))
