"""Moments over images, and what they say about ranks: against patches built by hand and outputs measured directly."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decomposers import alds
from decomposers.factorize import build_pair, shape_of, write_factors
from decomposers.folding import Form
from decomposers.layers import Layer, find_layers
from decomposers.moments import Moments, collect_moments
from decomposers.options import AldsOptions, options_of
from decomposers.output_error import output_curve, output_factors
from tests.decomposers.nets import Mixed, Shared, images, seeded

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "strided": (lambda: nn.Conv2d(8, 6, (3, 2), stride=(2, 1), padding=(1, 2)), (8, 9, 7)),
    "same": (lambda: nn.Conv2d(8, 6, (4, 3), padding="same", dilation=(1, 2)), (8, 9, 9)),
    "circular": (lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular", bias=False), (8, 9, 9)),
    "grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2, padding=1), (8, 9, 9)),
    "conv1d": (lambda: nn.Conv1d(8, 6, 5, stride=2, padding=2, dilation=2), (8, 15)),
    "conv3d": (lambda: nn.Conv3d(8, 6, (2, 3, 2), padding=1), (8, 5, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), (8, 5, 5)),
    "linear": (lambda: nn.Linear(8, 6), (8,)),
    "tokens": (lambda: nn.Linear(8, 6), (5, 8)),
}


def one_layer(name: str) -> tuple[nn.Module, Layer, list[Tensor]]:
    make, size = LAYERS[name]
    model = seeded(nn.Sequential(make(), nn.ReLU()))
    batches = [images(3, *size, seed=seed) + 0.3 for seed in (1, 2)]
    (layer,) = find_layers(model, batches[0]).layers
    return model, layer, batches


def outputs(layer: Any, batches: list[Tensor]) -> Tensor:
    """(positions, f) of a layer without its bias, in float64."""
    free = copy.deepcopy(layer).double()
    if free.bias is not None:
        free.bias = None
    with torch.no_grad():
        found = [free(batch.double()) for batch in batches]
    axes = len(shape_of(layer).kernel)
    return torch.cat([(y.movedim(y.ndim - axes - 1, -1) if axes else y).reshape(-1, 6) for y in found])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("max_groups", [None, 1])
def test_output_moments_are_those_of_the_outputs(name: str, max_groups: int | None) -> None:
    model, layer, batches = one_layer(name)
    found = collect_moments(model, [layer], batches, max_groups)["0"]
    values = outputs(model[0], batches).reshape(-1, layer.shape.groups, 6 // layer.shape.groups)  # (n, G, f/G)
    expected = torch.einsum("ngi,ngj->gij", values, values) / len(values)
    assert torch.allclose(found.outputs, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.mean, values.mean(0), rtol=1e-4, atol=1e-5)
    assert torch.allclose(
        found.centred, expected - torch.einsum("gi,gj->gij", values.mean(0), values.mean(0)), atol=1e-4
    )


def test_input_moments_are_those_of_patches_cut_by_hand() -> None:
    model, layer, batches = one_layer("strided")
    found = collect_moments(model, [layer], batches)["0"].inputs
    rows = []
    for image in torch.cat(batches).double():
        padded = nn.functional.pad(image, (2, 2, 1, 1))
        for top in range(0, 11 - 3 + 1, 2):
            rows += [padded[:, top : top + 3, left : left + 2].flatten() for left in range(11 - 2 + 1)]
    patches = torch.stack(rows)
    assert found is not None
    assert torch.allclose(found[0], patches.T @ patches / len(patches), rtol=1e-5, atol=1e-6)


def measured_error(model: Any, layer: Layer, moments: Moments, batches: list[Tensor], form: Form) -> float:
    """Squared error of the outputs of a factored layer, relative to their power."""
    shape = layer.shape
    factors, _ = output_factors(model[0].weight, shape, form, moments)
    pair = build_pair(copy.deepcopy(model[0]).double(), form, bias=False)
    write_factors(pair, shape, form, factors)
    exact = outputs(model[0], batches)
    with torch.no_grad():
        found = [pair(batch.double()) for batch in batches]
    axes = len(shape.kernel)
    approximate = torch.cat([(y.movedim(y.ndim - axes - 1, -1) if axes else y).reshape(-1, 6) for y in found])
    return float((exact - approximate).square().sum() / exact.square().sum())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_predicted_output_error_is_the_measured_one(name: str, groups: int) -> None:
    model, layer, batches = one_layer(name)
    moments = collect_moments(model, [layer], batches)["0"]
    if groups > 1 and (moments.inputs is None or layer.shape.slice_width % groups):
        with pytest.raises(ValueError, match=r"several slices need|do not divide"):
            output_curve(model[0].weight, layer.shape, groups, moments)
        return
    curve = output_curve(model[0].weight, layer.shape, groups, moments)
    assert list(curve) == sorted(curve, reverse=True)
    assert curve[0] == pytest.approx(1.0)
    assert curve[-1] == 0.0
    best = 1.0
    for rank in range(1, len(curve) - 1):
        best = min(best, measured_error(model, layer, moments, batches, Form(0, groups, rank)))
        assert curve[rank] == pytest.approx(best, abs=1e-4)


def test_one_slice_is_the_best_projection_of_the_outputs() -> None:
    model, layer, batches = one_layer("circular")
    moments = collect_moments(model, [layer], batches)["0"]
    values = torch.linalg.svdvals(outputs(model[0], batches)).square()
    curve = output_curve(model[0].weight, layer.shape, 1, moments)
    for rank in range(6):
        assert curve[rank] == pytest.approx(float(values[rank:].sum() / values.sum()), abs=1e-5)


def test_centred_error_and_bias_are_those_of_principal_components() -> None:
    model, layer, batches = one_layer("strided")
    moments = collect_moments(model, [layer], batches, 1)["0"]
    exact = outputs(model[0], batches)
    deviations = exact - exact.mean(0)
    values = torch.linalg.svdvals(deviations).square()
    curve = output_curve(model[0].weight, layer.shape, 1, moments, centred=True)
    assert curve[2] == pytest.approx(float(values[2:].sum() / values.sum()), abs=1e-5)
    form = Form(0, 1, 2)
    factors, shift = output_factors(model[0].weight, layer.shape, form, moments, centred=True)
    assert shift is not None
    pair = build_pair(copy.deepcopy(model[0]).double(), form, bias=True)
    write_factors(pair, layer.shape, form, factors)
    pair[1].bias = nn.Parameter(shift)
    with torch.no_grad():
        found = torch.cat([pair(batch.double()).movedim(1, -1).reshape(-1, 6) for batch in batches])
    assert float((exact - found).square().sum() / deviations.square().sum()) == pytest.approx(float(curve[2]), abs=1e-4)


def test_bounded_memory_changes_nothing() -> None:
    model, batches = seeded(Mixed()), [images(2, 3, 16, 16, seed=seed) for seed in (1, 2)]
    layers = find_layers(model, batches[0]).layers
    once = collect_moments(model, layers, batches)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = model.norm.register_forward_hook(count)
    small = collect_moments(model, layers, batches, memory=1)
    handle.remove()
    assert calls == len(layers) * len(batches)
    assert set(small) == set(once) == {layer.name for layer in layers}
    for name, moments in once.items():
        assert torch.equal(moments.outputs, small[name].outputs)
    assert not any(module._forward_hooks for module in model.modules())


def test_shared_layers_see_all_their_calls() -> None:
    model, batch = seeded(Shared()), images(2, 3, 8, 8)
    layers = [layer for layer in find_layers(model, batch).layers if layer.name == "left"]
    found = collect_moments(model, layers, [batch])["left"]
    seen: list[Tensor] = []
    for module in (model.left, model.right):
        module.register_forward_hook(
            lambda m, _, y: seen.append((y - m.bias[:, None, None]).movedim(1, -1).reshape(-1, 16))
        )
    with torch.no_grad():
        model(batch)
    values = torch.cat(seen).double()
    assert torch.allclose(found.outputs[0], values.T @ values / len(values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [AldsOptions(error="output"), AldsOptions(error="output", objective="sum")])
def test_plans_from_images_apply_and_are_proved(options: AldsOptions) -> None:
    model, original = seeded(Mixed()), seeded(Mixed())
    batches = [images(4, 3, 16, 16, seed=seed) for seed in (1, 2)]
    analysis = alds.analyse(model, batches[0][:1], options, images=batches)
    plan = alds.with_true_errors(alds.choose(analysis, budget=9000), model, analysis.moments)
    assert all(layer.error is not None and layer.error > 0 for layer in plan.layers)
    with pytest.raises(ValueError, match="need the moments of its outputs"):
        alds.apply_(model, plan)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))
    alds.apply_(model, plan, analysis.moments)
    assert sum(parameter.numel() for parameter in model.parameters()) == plan.params_after <= 9000
    assert alds.prove(original, model, plan, batches[0]).network < 1e-5


def test_pca_counts_the_biases_that_it_adds() -> None:
    model, original = seeded(Mixed()), seeded(Mixed())
    batches = [images(4, 3, 16, 16, seed=seed) for seed in (1, 2)]
    analysis = alds.analyse(model, batches[0][:1], options_of("pca"), images=batches)
    plan = alds.choose(analysis, budget=9000)
    reflect = next(layer for layer in plan.layers if layer.name == "reflect")
    assert reflect.bias
    assert reflect.weights_after == reflect.rank * (16 + 24 * 9) + 16
    alds.apply_(model, plan, analysis.moments)
    assert model.reflect[1].bias is not None
    assert sum(parameter.numel() for parameter in model.parameters()) == plan.params_after <= 9000
    assert alds.prove(original, model, plan, batches[0]).network < 1e-5
    rebuilt = seeded(Mixed())
    alds.restructure_(rebuilt, plan.to_dict())
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(batches[0]), model(batches[0]))


def test_images_are_needed_where_the_error_is_measured_on_them() -> None:
    with pytest.raises(ValueError, match="moments need images"):
        alds.analyse(seeded(Mixed()), images(1, 3, 16, 16), options_of("pca"))
