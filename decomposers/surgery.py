"""Carrying out a plan: pairs in place of layers, under every name, and the proof that they compute what they should."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from decomposers.alds_plan import AldsPlan, Factored
from decomposers.errors import PlanMismatch, ProofFailed
from decomposers.factorize import (
    SUPPORTED,
    Factors,
    build_pair,
    halves,
    prove_layer,
    read_factors,
    reconstruct,
    shape_of,
    svd_factors,
    write_factors,
)
from decomposers.folding import LayerShape, fold
from decomposers.moments import Moments
from decomposers.observe import Inputs, observe, owners, run
from decomposers.output_error import output_factors
from decomposers.spectra import gram
from profilers.modes import eval_mode

NETWORK_TOLERANCE = 1e-3
"""Largest difference of the whole network's outputs, in float32, relative to the largest output."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A replaced layer of a decomposed model.

    Attributes:
        planned: what the plan says about it.
        module: the sequence of the two layers.
        encoder: keeps the slices apart, no bias.
        decoder: mixes them, carries the bias.
    """

    planned: Factored
    module: nn.Sequential
    encoder: Any
    decoder: Any

    @property
    def name(self) -> str:
        """The layer's first name."""
        return self.planned.name


@dataclass(frozen=True, slots=True)
class Proof:
    """What `prove` found.

    Attributes:
        layers: first name -> largest difference to the dense layer with the reconstructed weight, in float64.
        network: the same for the outputs of the whole network, in float32.
    """

    layers: Mapping[str, float]
    network: float


def apply_(model: nn.Module, plan: AldsPlan, moments: Mapping[str, Moments] | None = None) -> None:
    """Replace the planned layers by pairs with factors of their weights.

    The model is changed only when all factors are there; a layer under several names becomes one pair under all.

    Args:
        model: the one the plan was made for; changed in place.
        plan: from `choose`.
        moments: those the plan was made with, where its error is measured on images.

    Raises:
        PlanMismatch: the plan is for another model.
        ValueError: the plan needs moments and they are missing.
    """
    plan.applies_to(model)
    made = []
    for layer in plan.layers:
        factors, shift = factors_of(model, layer, plan, moments)
        made += list(_pairs_for(model, layer, factors, shift))
    _attach(model, made)


def restructure_(model: nn.Module, plan: AldsPlan | Mapping[str, Any]) -> None:
    """Replace the planned layers by pairs with undefined weights, for a state dict that is loaded afterwards.

    Raises:
        BadPlan: the document is no plan.
        PlanMismatch: the plan is for another model.
    """
    found = plan if isinstance(plan, AldsPlan) else AldsPlan.from_dict(plan)
    found.applies_to(model)
    _attach(model, [item for layer in found.layers for item in _pairs_for(model, layer, None, None)])


def factors_of(
    model: nn.Module, layer: Factored, plan: AldsPlan, moments: Mapping[str, Moments] | None = None
) -> tuple[Factors, Tensor | None]:
    """Return the factors of a planned layer of the dense model, and what is added to its bias (None for nothing)."""
    module: Any = model.get_submodule(layer.name)
    shape = shape_of(module)
    if not plan.needs_images:
        return svd_factors(module.weight, shape, layer.form, layer.name), None
    if moments is None or layer.name not in moments:
        raise ValueError(f"{layer.name}: factors for the error {plan.error!r} need the moments of its outputs")
    centred = plan.error == "variance"
    return output_factors(module.weight, shape, layer.form, moments[layer.name], centred)


def _users(model: nn.Module, layer: Factored) -> list[nn.Module]:
    """Return the modules that use a layer's weight, each once."""
    every = dict(model.named_modules(remove_duplicate=False))
    return list(dict.fromkeys(every[name] for name in layer.names))


def _pairs_for(
    model: nn.Module, layer: Factored, factors: Factors | None, shift: Tensor | None
) -> Iterator[tuple[nn.Module, nn.Sequential]]:
    """Yield (module, pair) for every module that uses one weight; the pairs share their weights, not their biases."""
    first: nn.Sequential | None = None
    for module in _users(model, layer):
        pair = build_pair(module, layer.form, layer.bias)
        if first is None:
            first = pair
            if factors is not None:
                write_factors(pair, shape_of(module), layer.form, factors)
        else:
            for half, original in zip(halves(pair), halves(first), strict=True):
                half.weight = original.weight
        if shift is not None:
            _shift_bias(pair, shift)
        yield module, pair


def _shift_bias(pair: nn.Sequential, shift: Tensor) -> None:
    """Give the decoder a bias of its own that is moved; the dense layer's is left as it is."""
    decoder = halves(pair)[1]
    bias = decoder.bias
    moved = (bias.detach().double() + shift.to(bias.device)).to(bias.dtype)
    decoder.bias = nn.Parameter(moved, requires_grad=bias.requires_grad)


def _attach(model: nn.Module, made: list[tuple[nn.Module, nn.Sequential]]) -> None:
    """Hang every pair wherever its layer hangs."""
    places = owners(model)
    for module, pair in made:
        for parent, attribute in places[module]:
            parent._modules[attribute] = pair


def pairs(model: nn.Module, plan: AldsPlan) -> tuple[Pair, ...]:
    """Return the replaced layers of a decomposed model, in the plan's order.

    Raises:
        PlanMismatch: the model was not decomposed by this plan.
    """
    every = dict(model.named_modules(remove_duplicate=False))
    problems = tuple(problem for layer in plan.layers for problem in _not_a_pair(layer, every.get(layer.name)))
    if problems:
        raise PlanMismatch(problems)
    found = []
    for layer in plan.layers:
        module: Any = every[layer.name]
        found.append(Pair(layer, module, *halves(module)))
    return tuple(found)


def _not_a_pair(layer: Factored, module: nn.Module | None) -> Iterator[str]:
    if not isinstance(module, nn.Sequential) or sum(isinstance(part, SUPPORTED) for part in module) != 2:
        yield f"{layer.name} is {'missing' if module is None else f'a {type(module).__name__}'}, not a pair of layers"


def dense_weight(pair: nn.Sequential, layer: Factored, shape: LayerShape) -> Tensor:
    """Return the dense weight (float64, as the layer stores it) that a pair stands for."""
    return reconstruct(read_factors(pair, shape, layer.form), shape, layer.form)


def restored(original: nn.Module, compressed: nn.Module, plan: AldsPlan) -> nn.Module:
    """Return a copy of the original with the reconstructed weights and every other tensor of the compressed model."""
    twin = copy.deepcopy(original)
    current = compressed.state_dict()
    with torch.no_grad():
        for name, value in twin.state_dict().items():
            if isinstance(value, Tensor) and name in current:
                value.copy_(current[name])
    every = dict(compressed.named_modules(remove_duplicate=False))
    for layer in plan.layers:
        users = {name: module for name, module in twin.named_modules(remove_duplicate=False) if name in layer.names}
        for name, module in users.items():
            _restore(module, every[name], layer)
    return twin


def _restore(module: Any, pair: Any, layer: Factored) -> None:
    """Write a pair's weight and bias into the dense layer it came from."""
    weight, bias = dense_weight(pair, layer, shape_of(module)), halves(pair)[1].bias
    module.weight = nn.Parameter(weight.to(module.weight.dtype))
    module.bias = None if bias is None else nn.Parameter(bias.detach().clone())


def prove(original: nn.Module, compressed: nn.Module, plan: AldsPlan, example_inputs: Inputs) -> Proof:
    """Check that every pair, and the network of pairs, computes what the dense form with Ŵ = [D_1 E_1 ...] does.

    Holds after refitting and training too: everything but the structure is read from the compressed model.

    Args:
        original: the dense model; not changed.
        compressed: not changed.
        plan: that made one of the other.
        example_inputs: a tensor, a sequence of arguments or a mapping of keyword arguments.

    Raises:
        ProofFailed: above 1e-9 for a layer (float64), above 1e-3 for the network (float32).
        PlanMismatch: the models do not belong to the plan.
    """
    plan.applies_to(original)
    replaced = pairs(compressed, plan)
    modules = [original.get_submodule(pair.name) for pair in replaced]
    uses = observe(original, example_inputs, modules)
    layers = {
        pair.name: prove_layer(module, pair.module, pair.planned.form, uses[module].calls[0].inputs, pair.name)
        for pair, module in zip(replaced, modules, strict=True)
    }
    return Proof(layers, _prove_network(original, compressed, plan, example_inputs))


def _prove_network(original: nn.Module, compressed: nn.Module, plan: AldsPlan, inputs: Inputs) -> float:
    twin = restored(original, compressed, plan)
    with eval_mode(compressed, twin), torch.no_grad():
        found, expected = list(_tensors(run(compressed, inputs))), list(_tensors(run(twin, inputs)))
    if [item.shape for item in found] != [item.shape for item in expected]:
        raise ProofFailed("", float("inf"), NETWORK_TOLERANCE)
    worst = max((_difference(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
    if not worst <= NETWORK_TOLERANCE:
        raise ProofFailed("", worst, NETWORK_TOLERANCE)
    return worst


def _difference(found: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    scale = expected.double().abs().max().clamp(min=1e-30)
    return float((found.double() - expected.double()).abs().max() / scale)


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested output in a fixed order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


def with_true_errors(plan: AldsPlan, model: nn.Module, moments: Mapping[str, Moments] | None = None) -> AldsPlan:
    """Return the plan with ||W - Ŵ|| / ||W|| in the spectral norm of every layer's factors, W folded whole."""
    layers = tuple(
        layer if layer.error is not None else replace(layer, error=_true_error(model, layer, plan, moments))
        for layer in plan.layers
    )
    return replace(plan, layers=layers)


def _true_error(model: nn.Module, layer: Factored, plan: AldsPlan, moments: Mapping[str, Moments] | None) -> float:
    module: Any = model.get_submodule(layer.name)
    shape, weight = shape_of(module), module.weight.detach().double()
    factors, _ = factors_of(model, layer, plan, moments)
    approximation = reconstruct(factors, shape, layer.form).to(weight.device)
    lost = _norm(weight - approximation, shape, layer.scheme)
    return float((lost / _norm(weight, shape, layer.scheme).clamp(min=1e-150)).item())


def _norm(weight: Tensor, shape: LayerShape, scheme: int) -> Tensor:
    """Return the spectral norm of a folded weight, the largest of its layer groups."""
    matrices = fold(weight, shape, scheme, 1)
    side = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    largest: Tensor = torch.linalg.eigvalsh(gram(side))[..., -1].clamp(min=0).sqrt().max()
    return largest
