"""The routine on tiny networks: oracles by torch.linalg.lstsq and by algebra, and what must never change."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from compress_cli.recovery import Correspondence, DoNotMatch, NoImages, RecoveryOptions, recover
from compress_cli.recovery.images import arrange
from tests.recovery.nets import Attention, Kinds, Residual, images, prune_, randomise

NETS = {"residual": Residual, "kinds": Kinds, "attention": Attention}


def pair(name: str, sparsity: float = 0.6) -> tuple[nn.Module, nn.Module]:
    dense = randomise(NETS[name]())
    compressed = copy.deepcopy(dense)
    prune_(compressed, sparsity)
    return dense, compressed


def bits(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def distance(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    first, second = a(x), b(x)
    first, second = (first, second) if isinstance(first, Tensor) else (first[0], second[0])
    return float((first - second).square().sum() / (first - first.mean(0)).square().sum())


@pytest.mark.parametrize("name", NETS)
def test_unseen_outputs_come_nearer_zeros_stay_zeros_and_the_original_stays(name: str) -> None:
    dense, compressed = pair(name)
    unseen, kept = images(40, seed=9), bits(dense)
    zeros = {n: t == 0 for n, t in compressed.named_parameters() if t.dim() > 1}
    before = distance(dense, compressed, unseen)
    record = recover(dense, compressed, [images(150)])
    assert record.kept
    assert record.after < 0.5 * record.before
    assert distance(dense, compressed, unseen) < 0.6 * before
    assert same(kept, dense.state_dict())
    for tensor_name, tensor in compressed.named_parameters():
        if tensor_name in zeros:
            assert torch.equal(tensor == 0, zeros[tensor_name])
            assert not torch.signbit(tensor[zeros[tensor_name]]).any()
    if name == "attention":  # corrected through layer scale and changes of layout
        layers = {layer.name: layer for layer in record.layers}
        assert {"attention.in_proj_weight", "attention.out_proj.weight", "mlp.2.weight"} <= set(layers)
        assert layers["attention.out_proj.weight"].corrected
        assert layers["mlp.2.weight"].corrected
    if name == "kinds":  # a layer that is called twice is solved once
        (shared,) = [layer for layer in record.layers if layer.name == "shared.weight"]
        assert shared.uses == 2
        assert shared.kept


@pytest.mark.parametrize("name", NETS)
def test_nothing_removed_nothing_changes(name: str) -> None:
    dense = randomise(NETS[name]())
    compressed = copy.deepcopy(dense)
    record = recover(dense, compressed, [images()])
    assert same(bits(dense), compressed.state_dict())
    assert not record.kept
    assert not any(layer.kept for layer in record.layers)


def test_neither_memory_nor_batches_nor_repetition_change_a_bit() -> None:
    dense, first = pair("residual")
    second = copy.deepcopy(first)
    seen: list[tuple[int, int]] = []
    second.train()
    recover(dense, first, [images()], seed=4)
    recover(
        dense,
        second,
        list(images().split(7)),
        seed=4,
        options=RecoveryOptions(memory=0),
        on_step=lambda done, total, text: seen.append((done, total)),
    )
    assert same(bits(first), second.state_dict())
    assert seen == [(done, 6) for done in range(7)]
    assert second.training
    assert second.norm.training
    assert not dense.training


def fitted_part(x: Tensor, seed: int = 0) -> Tensor:
    options = RecoveryOptions()
    found = arrange([x], options.batch_size, options.holdout, seed)
    return torch.cat([batch[0] for batch in found.batches[: found.fitted]])


@torch.no_grad()
def test_one_layer_is_ordinary_least_squares_on_im2col_rows() -> None:
    dense = randomise(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1)))
    compressed = copy.deepcopy(dense)
    prune_(compressed, 0.5)
    x = images(100)
    recover(dense, compressed, [x], ridge=0.0, options=RecoveryOptions(batch_norms=False))
    fit = fitted_part(x).double()
    rows = nn.functional.unfold(fit, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 27)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    targets = dense.double()(fit).permute(0, 2, 3, 1).reshape(-1, 4)
    for output in range(4):
        weight = compressed[0].weight[output].flatten()
        on = torch.cat([weight != 0, torch.ones(1, dtype=torch.bool)])
        expected = torch.linalg.lstsq(rows[:, on], targets[:, output : output + 1]).solution[:, 0]
        found = torch.cat([weight, compressed[0].bias[output : output + 1]])[on]
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_offset_of_a_layer_without_bias_goes_into_the_running_mean() -> None:
    dense = randomise(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    compressed = copy.deepcopy(dense)
    compressed[0].weight[:, 1:] = 0
    x = images(100) + 2.0  # a mean that the removed inputs carried
    recover(dense, compressed, [x], ridge=0.0, options=RecoveryOptions(batch_norms=False, weighted=False))
    fit = fitted_part(x)
    # with a free constant per channel least squares leaves no mean error on the fitted images
    difference = (compressed(fit) - dense(fit)).mean((0, 2, 3))
    assert difference.abs().max() < 1e-5
    assert torch.equal(compressed[1].running_var, dense[1].running_var)
    assert not torch.equal(compressed[1].running_mean, dense[1].running_mean)


@torch.no_grad()
def test_decoder_of_factors_is_the_closed_form() -> None:
    dense = randomise(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False)))
    encoder, decoder = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Conv2d(3, 6, 1, bias=False)
    compressed = nn.Sequential(nn.Sequential(encoder, decoder))
    randomise(compressed, seed=5)
    kept = encoder.weight.clone()
    x = images(100)
    record = recover(dense, compressed, [x], ridge=0.0)
    assert [layer.name for layer in record.layers] == ["0.1.weight"]
    rows = nn.functional.unfold(fitted_part(x).double(), 3, padding=1).transpose(1, 2).reshape(-1, 27)
    c, w, e = rows.T @ rows, dense[0].weight.double().flatten(1), kept.double().flatten(1)
    expected = w @ c @ e.T @ torch.linalg.inv(e @ c @ e.T)
    torch.testing.assert_close(decoder.weight.double().flatten(1), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(encoder.weight, kept)


def test_the_last_layer_of_a_branch_corrects_the_sum() -> None:
    unseen = images(60, seed=3)
    results = {}
    for sums in (False, True):
        dense, compressed = pair("residual", 0.7)
        record = recover(dense, compressed, [images(150)], options=RecoveryOptions(sums=sums, batch_norms=False))
        results[sums] = distance(dense, compressed, unseen)
        corrected = {layer.name for layer in record.layers if layer.corrected}
        assert corrected == ({"blocks.0.conv2.weight", "blocks.1.conv2.weight"} if sums else set())
    assert results[True] < results[False]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6, bias=False)
        self.b = nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def test_tied_parameters_stay_tied() -> None:
    dense = randomise(Tied())
    compressed = copy.deepcopy(dense)
    prune_(compressed, 0.5)
    record = recover(dense, compressed, [torch.randn(80, 6, generator=torch.Generator().manual_seed(0))])
    assert compressed.a.weight is compressed.b.weight
    assert [layer.uses for layer in record.layers] == [2]


def test_wide_layers_are_solved_in_blocks() -> None:
    dense = randomise(nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)))
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, x + 0.5 * torch.randn(400, 12, generator=torch.Generator().manual_seed(1))], 1)
    errors = {}
    for columns in (7, 1000):
        compressed = copy.deepcopy(dense)
        prune_(compressed, 0.5)
        record = recover(
            dense, compressed, [x], options=RecoveryOptions(columns=columns, batch_norms=False, weighted=False)
        )
        errors[columns] = record.layers[0].after / record.layers[0].before
    assert errors[1000] < 0.7
    assert errors[7] < 0.7


def test_ignored_layers_keep_every_bit() -> None:
    dense, compressed = pair("residual")
    before = compressed.blocks[0].conv1.weight.clone()
    record = recover(dense, compressed, [images()], correspondence=Correspondence(ignore=("blocks.0.conv1",)))
    document = json.loads(json.dumps(record.to_dict()))
    assert document["images"] == 60
    assert document["summary"].startswith("least squares from 60 unlabelled images, 5 of 5 layers; output error on 12")
    assert document["after"] < document["before"]
    assert {"as compressed", "least squares", "batch norms"} <= set(document["candidates"])
    assert torch.equal(compressed.blocks[0].conv1.weight, before)
    assert ("blocks.0.conv1.weight", "ignored") in record.skipped


def test_one_image_and_foreign_networks_are_refused_unchanged() -> None:
    dense, compressed = pair("residual")
    before = bits(compressed)
    with pytest.raises(NoImages, match="1 image is too few"):
        recover(dense, compressed, [images(1)])
    with pytest.raises(DoNotMatch, match="4 of the original's 3"):
        recover(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Conv2d(3, 4, 1)), [images()])
    assert same(before, compressed.state_dict())


class Chain(nn.Module):
    """Two convolutions, a residual sum with the first one's output, and a head; the width is inner * 2."""

    def __init__(self, stream: int, inner: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stream, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(stream)
        self.conv1 = nn.Conv2d(stream, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, stream, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(stream)
        self.head = nn.Linear(stream, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.norm2(self.conv2(torch.relu(self.conv1(x)))))
        return self.head(x.mean((2, 3)))


@torch.no_grad()
def cut(dense: Chain, stream: list[int], inner: list[int]) -> Chain:
    """The network without the other channels of the stream and of the inner width."""
    small = Chain(len(stream), len(inner)).eval()
    small.stem.weight.copy_(dense.stem.weight[stream])
    for norm in ("norm", "norm2"):
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(getattr(small, norm), name).copy_(getattr(getattr(dense, norm), name)[stream])
    small.conv1.weight.copy_(dense.conv1.weight[inner][:, stream])
    small.conv1.bias.copy_(dense.conv1.bias[inner])
    small.conv2.weight.copy_(dense.conv2.weight[stream][:, inner])
    small.head.weight.copy_(dense.head.weight[:, stream])
    small.head.bias.copy_(dense.head.bias)
    return small


def test_removed_channels_are_made_up_for_by_those_that_stay() -> None:
    dense = randomise(Chain(8, 8))
    stream, inner = [0, 1, 3, 4, 6, 7], [1, 2, 4, 5, 7]
    keep = {"stem.weight": {0: stream}, "conv1.weight": {0: inner}, "conv2.weight": {0: stream}}
    unseen = images(40, seed=9)
    compressed = cut(dense, stream, inner)
    before = distance(dense, compressed, unseen)
    record = recover(dense, compressed, [images(150)], correspondence=Correspondence(keep=keep))
    assert distance(dense, compressed, unseen) < 0.5 * before
    assert {layer.name for layer in record.layers if layer.corrected} == {"conv2.weight"}
    with pytest.raises(DoNotMatch, match="6 of the original's 8 output channels"):
        recover(dense, cut(dense, stream, inner), [images()])


def test_little_memory_takes_fewer_images_for_early_layers_only() -> None:
    rows = {}
    for memory in (2 << 30, 1 << 20):
        dense, compressed = pair("residual")
        record = recover(dense, compressed, [images(400)], options=RecoveryOptions(memory=memory, batch_size=16))
        assert record.after < 0.5 * record.before
        rows[memory] = [layer.rows for layer in record.layers]
    assert rows[1 << 20][0] < 0.7 * rows[2 << 30][0]
    assert rows[1 << 20][-1] == rows[2 << 30][-1]  # what the head reads is small


def test_some_batches_are_fitted_and_some_held_out() -> None:
    found = arrange([images(100)], 10, 0.2, 0)
    assert found.spread(5) == (0, 1, 2, 3, 8)
    assert found.spread(1) == (0, 8)
    assert found.spread(99) == tuple(range(10))
    assert arrange([torch.zeros(64, 3, 224, 224)], 64, 0.2, 0).size <= 16
