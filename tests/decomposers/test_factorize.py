"""Factors and pairs: equal to the dense layer with the reconstructed weight, for every kind of layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decomposers.errors import BadWeights, ProofFailed
from decomposers.factorize import (
    build_pair,
    dense_twin,
    halves,
    prove_layer,
    read_factors,
    reconstruct,
    shape_of,
    svd_factors,
    write_factors,
)
from decomposers.folding import Form, LayerShape, distinct_schemes, factored_weights, rank_limit

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(8, 6, 3), (2, 8, 9, 7)),
    "stride": (lambda: nn.Conv2d(8, 6, (3, 5), stride=(2, 3), padding=(1, 2)), (2, 8, 11, 13)),
    "dilation": (lambda: nn.Conv2d(8, 6, 3, dilation=(2, 3), padding=(2, 3), bias=False), (2, 8, 9, 9)),
    "same even": (lambda: nn.Conv2d(8, 6, (4, 3), padding="same", dilation=(1, 2)), (2, 8, 9, 9)),
    "valid": (lambda: nn.Conv2d(8, 6, 3, padding="valid", stride=2), (2, 8, 9, 9)),
    "reflect": (lambda: nn.Conv2d(8, 6, 3, padding=2, padding_mode="reflect"), (2, 8, 9, 9)),
    "replicate": (lambda: nn.Conv2d(8, 6, 3, padding=(0, 1), padding_mode="replicate"), (2, 8, 9, 9)),
    "circular": (lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular", stride=2), (2, 8, 9, 9)),
    "same circular": (lambda: nn.Conv2d(8, 6, (2, 3), padding="same", padding_mode="circular"), (2, 8, 9, 9)),
    "pointwise strided": (lambda: nn.Conv2d(8, 6, 1, stride=2), (2, 8, 9, 9)),
    "padded pointwise": (lambda: nn.Conv2d(8, 6, 1, padding=2), (2, 8, 9, 9)),
    "grouped": (lambda: nn.Conv2d(16, 12, 3, groups=2, padding=1), (2, 16, 9, 9)),
    "depthwise multiplier": (lambda: nn.Conv2d(4, 16, 3, groups=4, padding=1), (2, 4, 9, 9)),
    "conv1d": (lambda: nn.Conv1d(8, 6, 5, stride=2, padding=2), (2, 8, 15)),
    "conv1d circular": (lambda: nn.Conv1d(8, 6, 3, padding=1, padding_mode="circular"), (2, 8, 15)),
    "conv3d": (lambda: nn.Conv3d(8, 6, (2, 3, 2), padding=1, dilation=(2, 1, 1)), (1, 8, 6, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1), (2, 8, 5, 5)),
    "transposed grouped": (lambda: nn.ConvTranspose2d(8, 6, (4, 2), stride=(2, 1), groups=2, dilation=2), (2, 8, 5, 5)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(8, 6, 4, stride=4, bias=False), (2, 8, 7)),
    "linear": (lambda: nn.Linear(8, 6), (3, 8)),
}


def random_layer(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    make, size = LAYERS[name]
    layer = make()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer, size


def decompose(layer: nn.Module, form: Form) -> nn.Sequential:
    pair = build_pair(layer, form, bias=layer.bias is not None)
    shape = shape_of(layer)
    write_factors(pair, shape, form, svd_factors(layer.weight, shape, form))  # type: ignore[arg-type]
    return pair


def forms(layer: nn.Module) -> list[Form]:
    shape = shape_of(layer)
    slices = [k for k in (1, 2, 4) if shape.slice_width % k == 0]
    return [
        Form(scheme, k, j)
        for scheme in distinct_schemes(shape)
        for k in slices
        for j in sorted({1, (rank_limit(shape, scheme, k) + 1) // 2, rank_limit(shape, scheme, k)})
    ]


@pytest.mark.parametrize("name", LAYERS)
def test_pair_equals_dense_layer_with_reconstructed_weight(name: str) -> None:
    layer, size = random_layer(name)
    sample = torch.randn(size, generator=torch.Generator().manual_seed(2))
    for form in forms(layer):
        pair = decompose(layer, form)
        assert prove_layer(layer, pair, form, size) <= 1e-12
        expected = dense_twin(layer, pair, form).float()(sample)
        assert torch.allclose(pair(sample), expected, rtol=0, atol=1e-5 * expected.detach().abs().max().item())


@pytest.mark.parametrize("name", LAYERS)
def test_full_rank_reproduces_the_layer(name: str) -> None:
    layer, size = random_layer(name)
    sample = torch.randn(size, generator=torch.Generator().manual_seed(2))
    shape = shape_of(layer)
    for form in forms(layer):
        if form.rank == rank_limit(shape, form.scheme, form.groups):
            expected = layer(sample)
            found = decompose(layer, form)(sample)
            assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.detach().abs().max().item())


@pytest.mark.parametrize("name", LAYERS)
def test_pair_is_plain_and_has_the_predicted_size(name: str) -> None:
    layer, _ = random_layer(name)
    shape = shape_of(layer)
    for form in forms(layer):
        pair = decompose(layer, form)
        encoder, decoder = halves(pair)
        assert encoder.weight.numel() + decoder.weight.numel() == factored_weights(shape, form)
        assert encoder.bias is None
        assert decoder.bias is layer.bias
        assert {type(part) for part in pair} <= {
            *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Unflatten, nn.Flatten),
            *(nn.ConvTranspose1d, nn.ConvTranspose2d),
        }


@pytest.mark.parametrize("name", ["plain", "grouped", "transposed grouped", "conv3d"])
def test_factors_are_read_back_as_written(name: str) -> None:
    layer, _ = random_layer(name)
    shape = shape_of(layer)
    for form in forms(layer):
        factors = svd_factors(layer.weight.double(), shape, form)  # type: ignore[operator]
        pair = build_pair(layer, form, bias=True).double()
        write_factors(pair, shape, form, factors)
        read = read_factors(pair, shape, form)
        assert torch.equal(read.encoder, factors.encoder)
        assert torch.equal(read.decoder, factors.decoder)


def test_rank_one_of_a_known_matrix() -> None:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    form = Form(0, 1, 1)
    factors = svd_factors(layer.weight, shape_of(layer), form)
    assert torch.allclose(factors.product(), torch.tensor([[[3.0, 0.0], [0.0, 0.0]]]).double())
    assert torch.allclose(factors.decoder.square().sum(), torch.tensor(3.0).double())
    assert torch.allclose(factors.encoder.square().sum(), torch.tensor(3.0).double())


def test_truncation_leaves_the_tail_of_the_spectrum() -> None:
    layer, _ = random_layer("plain")
    shape, weight = shape_of(layer), layer.weight.detach().double()  # type: ignore[operator]
    for rank in (1, 3, 5):
        rest = weight - reconstruct(svd_factors(weight, shape, Form(0, 1, rank)), shape, Form(0, 1, rank))
        values = torch.linalg.svdvals(weight.flatten(1))
        assert torch.linalg.matrix_norm(rest.flatten(1), 2) == pytest.approx(float(values[rank]), rel=1e-9)


def test_single_precision_vectors_of_huge_layers_lose_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decomposers.factorize.HUGE_ROWS", 8)
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(24, 24, generator=generator).double())[0]
    right = torch.linalg.qr(torch.randn(40, 24, generator=generator).double())[0]
    values = 0.5 ** torch.arange(24.0).double()
    weight = ((left * values) @ right.mT).float()
    shape = LayerShape(24, 40)
    for rank in (4, 12):
        factors = svd_factors(weight, shape, Form(0, 1, rank))
        rest = weight.double() - factors.product()[0].double()
        assert factors.encoder.dtype == torch.float32
        assert torch.linalg.matrix_norm(rest, 2) <= values[rank] * (1 + 1e-3) + 3e-6
    whole = svd_factors(weight, shape, Form(0, 1, 24)).product()[0]
    assert torch.allclose(whole, weight, atol=1e-5)


def test_a_large_input_is_proved_on_a_part_of_it() -> None:
    seen: list[tuple[int, ...]] = []
    layer = nn.Conv2d(4, 4, 3, dilation=2, padding=2)
    pair = decompose(layer, Form(0, 2, 1))
    pair.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape)))
    assert prove_layer(layer, pair, Form(0, 2, 1), (1, 4, 500, 30)) < 1e-9
    assert seen == [(1, 4, 36, 30)]


def test_zero_and_rank_deficient_weights_factor() -> None:
    layer = nn.Conv2d(4, 4, 3, bias=False)
    nn.init.zeros_(layer.weight)
    layer.weight.data[0, 0] = 1.0
    pair = decompose(layer, Form(0, 2, 3))
    assert all(bool(torch.isfinite(p).all()) for p in pair.parameters())
    assert prove_layer(layer, pair, Form(0, 2, 3), (1, 4, 5, 5)) < 1e-9
    sample = torch.ones(1, 4, 5, 5)
    assert torch.allclose(pair(sample), layer(sample), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_mode_and_gradients_are_kept(dtype: torch.dtype) -> None:
    layer = nn.Conv2d(4, 6, 3).to(dtype).eval()
    layer.weight.requires_grad_(False)
    pair = decompose(layer, Form(0, 2, 2))
    encoder, decoder = halves(pair)
    assert encoder.weight.dtype == decoder.weight.dtype == dtype
    assert not pair.training
    assert not encoder.training
    assert [p.requires_grad for p in (encoder.weight, decoder.weight, decoder.bias)] == [False, False, True]


def test_building_draws_no_random_numbers_and_works_on_meta() -> None:
    before = torch.get_rng_state()
    pair = build_pair(nn.Conv2d(4, 6, 3, device="meta"), Form(0, 2, 2), bias=True)
    linear = build_pair(nn.Linear(8, 6, device="meta"), Form(0, 4, 2), bias=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert pair[0].weight.device.type == "meta"
    assert linear(torch.empty(3, 8, device="meta")).shape == (3, 6)


def test_decoder_gets_a_zero_bias_where_the_layer_had_none() -> None:
    pair = build_pair(nn.Conv2d(4, 6, 3, bias=False), Form(0, 1, 2), bias=True)
    assert pair[1].bias.tolist() == [0.0] * 6


def test_the_callers_layer_is_untouched() -> None:
    layer, _ = random_layer("plain")
    before = copy.deepcopy(layer.state_dict())
    decompose(layer, Form(0, 2, 2))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_a_wrong_pair_fails_the_proof() -> None:
    layer, size = random_layer("plain")
    pair = decompose(layer, Form(0, 2, 2))
    pair[0].stride = (2, 2)
    with pytest.raises(ProofFailed, match="conv: the factored form differs") as caught:
        prove_layer(layer, pair, Form(0, 2, 2), size, "conv")
    assert caught.value.layer == "conv"


def test_a_wrong_padding_fails_the_proof() -> None:
    layer, size = random_layer("reflect")
    pair = decompose(layer, Form(0, 2, 2))
    pair[0].padding_mode = "circular"
    with pytest.raises(ProofFailed):
        prove_layer(layer, pair, Form(0, 2, 2), size, "conv")


def test_bad_weights_and_types_are_named() -> None:
    layer = nn.Linear(4, 4)
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(BadWeights, match="head: holds values that are not finite"):
        svd_factors(layer.weight, shape_of(layer), Form(0, 1, 1), "head")
    with pytest.raises(TypeError, match="BatchNorm2d is neither"):
        shape_of(nn.BatchNorm2d(3))
    with pytest.raises(TypeError, match="not a factored layer"):
        halves(nn.Sequential(nn.ReLU()))


def test_linear_with_groups_runs_on_one_sample_and_a_batch() -> None:
    layer, _ = random_layer("linear")
    pair = decompose(layer, Form(0, 4, 1))
    batch: Tensor = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(pair(batch)[2], pair(batch[2]), atol=1e-6)
