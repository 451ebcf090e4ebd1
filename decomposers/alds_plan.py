"""The portable decision of a decomposition: scheme, groups and rank per layer; no tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from decomposers.errors import BadPlan, PlanMismatch
from decomposers.folding import SCHEMES, Form
from decomposers.layers import Skipped
from decomposers.options import NEED_IMAGES

SCHEMA_VERSION = 1
METHOD = "alds"


@dataclass(frozen=True, slots=True)
class Factored:
    """What becomes of one layer, and the structure it was planned for.

    Attributes:
        name: its first name; `aliases` are further names of the module, `tied` other modules with the same weight.
        kind: class of the dense layer.
        weight_shape: of the dense weight, as stored.
        bias: whether the decoder carries a bias.
        scheme: folding scheme.
        groups: k, slices of input channels.
        rank: j, per slice.
        score: e_k[j], the largest sigma_{j+1} of a slice relative to sigma_1 of the weight. No bound of the error.
        minimised: what the plan minimises, of this layer: the score, or a relative error of the weight or the output.
        error: true relative error of the weight in the spectral norm with the plan's factors; None if not computed.
        weights_before, weights_after: without bias, but with one that the decoder gets where the layer had none.
        macs_before, macs_after: for the example inputs.
        activations: values between the two halves, per sample.
    """

    name: str
    aliases: tuple[str, ...]
    tied: tuple[str, ...]
    kind: str
    weight_shape: tuple[int, ...]
    bias: bool
    scheme: int
    groups: int
    rank: int
    score: float
    minimised: float
    error: float | None
    weights_before: int
    weights_after: int
    macs_before: int
    macs_after: int
    activations: int

    @property
    def form(self) -> Form:
        """Scheme, groups and rank."""
        return Form(self.scheme, self.groups, self.rank)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name under which the weight is used."""
        return (self.name, *self.aliases, *self.tied)

    @property
    def bound(self) -> float:
        """The relative error of the SVD factors in the spectral norm is never above this: sqrt(k) times the score."""
        return float(self.groups**0.5 * self.score)


@dataclass(frozen=True, slots=True)
class AldsPlan:
    """Which layers become two, and what that costs.

    Attributes:
        quantity: what the budget counts: params, macs, bytes or ms.
        budget: largest allowed, for the whole model.
        total: the original model's.
        planned: the decomposed model's; never above the budget.
        params_before, params_after: of the whole model.
        macs_before, macs_after: for the example inputs, of the whole model as far as they were counted.
        layers: those that become two.
        kept: layers that could be decomposed and stay dense.
        skipped: layers that cannot be decomposed.
        warnings: what the user should know.
        options: those the plan was made with.
    """

    quantity: str
    budget: float
    total: float
    planned: float
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    layers: tuple[Factored, ...]
    kept: tuple[Skipped, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def max_score(self) -> float:
        """Largest score of all layers."""
        return max((layer.score for layer in self.layers), default=0.0)

    @property
    def max_minimised(self) -> float:
        """Largest value of what the plan minimises."""
        return max((layer.minimised for layer in self.layers), default=0.0)

    @property
    def error(self) -> str:
        """What the plan minimises, see `AldsOptions`."""
        return str(self.options.get("error", "score"))

    @property
    def needs_images(self) -> bool:
        """Whether its factors come from moments over images."""
        return self.error in NEED_IMAGES

    def applies_to(self, model: nn.Module) -> None:
        """Check that every planned layer is there, with the planned class, sizes and shared names.

        Raises:
            PlanMismatch: listing every difference.
        """
        problems = tuple(problem for layer in self.layers for problem in _differences(layer, model, self.error))
        if problems:
            raise PlanMismatch(problems)

    def explain(self) -> str:
        """Return the plan as lines of text."""
        return "\n".join(_lines(self))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able document."""
        document: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "method": METHOD}
        document |= {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("layers", "kept", "skipped"):
            document[name] = [_listed(asdict(item)) for item in document[name]]
        document["warnings"] = list(self.warnings)
        document["options"] = dict(self.options)
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> AldsPlan:
        """Read what `to_dict` wrote.

        Raises:
            BadPlan: another method or version, or fields missing, unknown or of the wrong kind.
        """
        if document.get("method") != METHOD:
            raise BadPlan(f"its method is {document.get('method')!r}")
        if document.get("schema_version") != SCHEMA_VERSION:
            raise BadPlan(f"schema version {document.get('schema_version')!r}; this release reads {SCHEMA_VERSION}")
        values = {key: value for key, value in document.items() if key not in ("method", "schema_version")}
        try:
            values["layers"] = tuple(_factored(item) for item in values["layers"])
            values["kept"] = tuple(Skipped(**item) for item in values["kept"])
            values["skipped"] = tuple(Skipped(**item) for item in values["skipped"])
            values["warnings"] = tuple(values["warnings"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise BadPlan(f"{type(error).__name__}: {error}") from error


def _listed(document: dict[str, Any]) -> dict[str, Any]:
    """Turn tuples into lists, as JSON does."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in document.items()}


def _factored(document: Mapping[str, Any]) -> Factored:
    values = dict(document)
    for name in ("aliases", "tied", "weight_shape"):
        values[name] = tuple(values[name])
    found = Factored(**values)
    if not isinstance(found.name, str) or not isinstance(found.bias, bool):
        raise ValueError(f"a layer with name {found.name!r} and bias {found.bias!r}")
    numbers = (found.scheme, found.groups, found.rank, *found.weight_shape)
    if any(type(number) is not int for number in numbers) or found.scheme not in SCHEMES or min(numbers[1:]) < 1:
        raise ValueError(f"{found.name}: scheme, groups, rank and sizes are {numbers}")
    return found


def _differences(layer: Factored, model: nn.Module, error: str) -> Iterator[str]:
    try:
        module: Any = model.get_submodule(layer.name)
    except AttributeError:
        yield f"{layer.name} is missing"
        return
    kind, weight = type(module).__name__, getattr(module, "weight", None)
    if kind != layer.kind or weight is None:
        yield f"{layer.name} is a {kind}, planned for {layer.kind}"
        return
    if tuple(weight.shape) != layer.weight_shape:
        yield f"{layer.name} has a weight of {tuple(weight.shape)}, planned for {layer.weight_shape}"
    if layer.bias != (module.bias is not None or error == "variance"):
        yield f"{layer.name} has {'no' if module.bias is None else 'a'} bias, planned for the opposite"
    for name in (*layer.aliases, *layer.tied):
        other = dict(model.named_modules(remove_duplicate=False)).get(name)
        if other is None:
            yield f"{name} is missing"
        elif name in layer.aliases and other is not module:
            yield f"{name} was the same module as {layer.name}, now it is another"
        elif getattr(other, "weight", None) is not weight:
            yield f"{name} shared its weight with {layer.name}, now it does not"


def _lines(plan: AldsPlan) -> Iterator[str]:
    """Yield the text of `explain`: totals, one line per layer, what stays and why, warnings."""
    yield (
        f"budget {plan.budget:,.10g} of {plan.total:,.10g} {plan.quantity}, planned {plan.planned:,.10g}"
        f" ({plan.planned / plan.total if plan.total else 0:.2%})"
    )
    yield f"params {plan.params_before:,} -> {plan.params_after:,}, MACs {plan.macs_before:,} -> {plan.macs_after:,}"
    yield f"{len(plan.layers)} layers become two; the score is no bound of the error, the bound is sqrt(k) x score"
    if plan.error != "score":
        yield f"chosen by the error `{plan.error}`, at most {plan.max_minimised:.4f}"
    for layer in plan.layers:
        true = "" if layer.error is None else f", true error {layer.error:.4f}"
        same = f" (also {', '.join(layer.names[1:])})" if len(layer.names) > 1 else ""
        yield (
            f"{layer.name}: scheme {layer.scheme}, groups {layer.groups} x rank {layer.rank}, score {layer.score:.4f}"
            f" (bound {layer.bound:.4f}{true}), weights {layer.weights_before:,} -> {layer.weights_after:,},"
            f" MACs {layer.macs_before:,} -> {layer.macs_after:,}{same}"
        )
    yield from (f"dense {item.name}: {item.reason}" for item in plan.kept)
    yield from (f"left alone {item.name}: {item.reason}" for item in plan.skipped)
    yield from (f"warning: {text}" for text in plan.warnings)
