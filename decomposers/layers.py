"""Which layers of a model can be replaced by two thinner ones, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from decomposers.errors import BadWeights
from decomposers.factorize import SUPPORTED, shape_of
from decomposers.folding import Form, LayerShape, decoder_axes, encoder_axes, half_weights
from decomposers.observe import Call, Inputs, Use, observe
from decomposers.patterns import check_patterns, matches


@dataclass(frozen=True, slots=True)
class Skipped:
    """A layer left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight that can be factored, and every module that uses it.

    Attributes:
        name: the module's first name.
        aliases: further names of the same module.
        tied: names of other modules that share the weight.
        kind: class name, such as Conv2d.
        shape: the layer's sizes.
        bias: whether it has a bias.
        calls: sizes of every call in one forward pass, those of the tied modules included.
    """

    name: str
    aliases: tuple[str, ...]
    tied: tuple[str, ...]
    kind: str
    shape: LayerShape
    bias: bool
    calls: tuple[Call, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All names under which the weight is used."""
        return (self.name, *self.aliases, *self.tied)

    @property
    def macs(self) -> int:
        """MACs of all calls of the dense layer, batch included."""
        return _macs(self.shape, self.calls)


def _macs(shape: LayerShape, calls: Sequence[Call]) -> int:
    """Return the MACs of a dense layer's calls."""
    return sum(_batch(shape, call) * _dense_positions(shape, call) for call in calls) * shape.weights


def _spatial(shape: LayerShape, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return sizes[len(sizes) - len(shape.kernel) :]


def _batch(shape: LayerShape, call: Call) -> int:
    """Return how many independent samples or rows one call covers."""
    channels_last = not shape.kernel
    return prod(call.inputs[:-1]) if channels_last else prod(call.inputs[: len(call.inputs) - len(shape.kernel) - 1])


def _dense_positions(shape: LayerShape, call: Call) -> int:
    return prod(_spatial(shape, call.inputs if shape.transposed else call.outputs))


def _half_positions(shape: LayerShape, form: Form, call: Call) -> tuple[int, int]:
    """Return at how many positions encoder and decoder work: each axis at input or output size."""
    before, after = _spatial(shape, call.inputs), _spatial(shape, call.outputs)
    encoder, decoder = encoder_axes(shape, form.scheme), decoder_axes(shape, form.scheme)
    if not shape.transposed:
        return prod(after[axis] if axis in encoder else before[axis] for axis in range(len(before))), prod(after)
    return prod(before), prod(before if decoder else after)


def factored_macs(layer: Layer, form: Form) -> int:
    """Return the MACs of all calls after the layer was replaced.

    Scheme 0 of a convolution: Ho Wo j (k f + c K), so MACs shrink like weights; schemes 1 to 3 run a half at the
    input's resolution along the axes that the decoder spans.
    """
    encoder, decoder = half_weights(layer.shape, form)
    total = 0
    for call in layer.calls:
        at_encoder, at_decoder = _half_positions(layer.shape, form, call)
        total += _batch(layer.shape, call) * (at_encoder * encoder + at_decoder * decoder)
    return total


def factored_activations(layer: Layer, form: Form) -> int:
    """Return the number of values between encoder and decoder in the largest call, per sample."""
    inner = layer.shape.groups * form.groups * form.rank
    return max((_half_positions(layer.shape, form, call)[0] * inner for call in layer.calls), default=0)


def weight_of(model: nn.Module, layer: Layer) -> Tensor:
    """Return the layer's weight in a model, detached."""
    weight: Any = model.get_submodule(layer.name).weight
    result: Tensor = weight.detach()
    return result


@dataclass(frozen=True, slots=True)
class Structure:
    """What a model is made of, as far as decomposition sees it.

    Attributes:
        layers: those that can be replaced, in the model's order.
        skipped: everything else with a matrix, with the reason.
        params: parameters of the whole model, shared ones once.
        macs: MACs of all calls of convolutions and linear layers for the example inputs.
    """

    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]
    params: int
    macs: int


def find_layers(model: nn.Module, inputs: Inputs, ignore: Sequence[str] = (), only: Sequence[str] = ()) -> Structure:
    """Return the layers that can be replaced, and everything with a matrix that cannot.

    Args:
        model: not changed; one forward pass in evaluation mode.
        inputs: a tensor, a sequence of arguments or a mapping of keyword arguments.
        ignore: patterns of layers left alone.
        only: patterns of the layers considered; empty for all.

    Raises:
        NoMatch: a pattern fits no layer.
        BadWeights: a weight is not finite.
    """
    names = _names_of(model)
    users = _users_of(model)
    all_names = [name for found in names.values() for name in found if name]
    check_patterns([*ignore, *only], all_names)
    candidates = [module for module in names if type(module) in SUPPORTED and _owns(module, "weight")]
    uses = observe(model, inputs, candidates)
    reasons = {module: _reason(module, names[module], uses.get(module), ignore, only) for module in names}
    for module in candidates:
        reasons[module] = reasons[module] or _tie_reason(module, users, reasons)
    layers = tuple(_collect(candidates, names, users, uses, reasons))
    skipped = [Skipped(names[module][0], reason) for module, reason in reasons.items() if reason]
    macs = sum(_macs(shape_of(module), use.calls) for module, use in uses.items())
    return Structure(layers, tuple(skipped), sum(p.numel() for p in model.parameters()), macs)


def _owns(module: nn.Module, parameter: str) -> bool:
    return module._parameters.get(parameter) is not None


def _names_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return all names of every module that holds a matrix of its own, or whose weight is computed from others."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        matrices = [p for p in module._parameters.values() if p is not None and p.ndim > 1]
        if matrices or isinstance(module, SUPPORTED):
            names.setdefault(module, []).append(name)
    return names


def _users_of(model: nn.Module) -> dict[int, list[nn.Module]]:
    """Return, for the id of every parameter, the modules that hold it."""
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and module not in users.setdefault(id(parameter), []):
                users[id(parameter)].append(module)
    return users


def _reason(
    module: nn.Module, names: list[str], use: Use | None, ignore: Sequence[str], only: Sequence[str]
) -> str | None:
    """Return why a module with a matrix is left alone, or None."""
    kind = type(module).__name__
    if "" in names:
        return f"the model itself is this {kind}"
    if any(matches(pattern, names) for pattern in ignore):
        return "ignored on request"
    if only and not any(matches(pattern, names) for pattern in only):
        return "not among the layers asked for"
    if hasattr(module, "parametrizations") or hasattr(module, "weight_g"):
        return "its weight is computed from other parameters (weight norm or another parametrization)"
    if isinstance(module, (nn.MultiheadAttention, NonDynamicallyQuantizableLinear)):
        return "attention reads its projection weights directly, a pair of layers has no such weight"
    if type(module) not in SUPPORTED:
        plain = "a subclass of a plain layer" if isinstance(module, SUPPORTED) else "no convolution or linear layer"
        return f"{kind} is {plain}"
    if use is None:
        return "it has no weight of its own"
    return _layer_reason(module, use)


def _layer_reason(module: nn.Module, use: Use) -> str | None:
    """Return why a convolution or linear layer is left alone, or None."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    weight: Any = module.weight
    if any(getattr(module, name) for name in hooks):
        return "it carries hooks"
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}"
    if use.misuse is not None:
        return use.misuse
    if not use.calls:
        return "the model does not call it"
    shape = shape_of(module)
    if shape.slice_width == 1 and shape.out_channels == shape.groups:
        return "depthwise convolution: one channel per group, nothing to factor"
    return None


def _tie_reason(
    module: nn.Module, users: dict[int, list[nn.Module]], reasons: dict[nn.Module, str | None]
) -> str | None:
    """Return why a shared weight keeps a layer dense: some user of it cannot be replaced in the same way."""
    sharing = [other for other in users[id(module.weight)] if other is not module]
    for other in sharing:
        if type(other) is not type(module) or shape_of(other) != shape_of(module):
            return f"its weight is shared with a {type(other).__name__} that cannot be factored in the same way"
        if reasons[other] and "shared with" not in str(reasons[other]):
            return f"its weight is shared with a layer that is left alone ({reasons[other]})"
        if (other.bias is None) != (module.bias is None):
            return "its weight is shared between a layer with and one without bias"
    return None


def _collect(
    candidates: list[nn.Module],
    names: dict[nn.Module, list[str]],
    users: dict[int, list[nn.Module]],
    uses: dict[nn.Module, Use],
    reasons: dict[nn.Module, str | None],
) -> Iterator[Layer]:
    """Yield one layer per weight."""
    seen: set[int] = set()
    for module in candidates:
        weight: Any = module.weight
        if reasons[module] or id(weight) in seen:
            continue
        seen.add(id(weight))
        if weight.device.type != "meta" and not bool(weight.detach().isfinite().all()):
            raise BadWeights(names[module][0], "holds values that are not finite")
        others = [other for other in users[id(weight)] if other is not module]
        yield Layer(
            name=names[module][0],
            aliases=tuple(names[module][1:]),
            tied=tuple(name for other in others for name in names[other]),
            kind=type(module).__name__,
            shape=shape_of(module),
            bias=module.bias is not None,
            calls=tuple(call for user in (module, *others) for call in uses[user].calls),
        )
