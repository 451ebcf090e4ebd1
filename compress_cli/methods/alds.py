"""`--method alds` and its baselines `svd`, `svd-energy`, `pca`: `decomposers.alds` behind the pipeline's interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compress_cli.atomic import atomic_path
from compress_cli.errors import CompressError, UsageError, VerificationError
from compress_cli.methods.alds_budgets import Budget, achieved_counts
from compress_cli.methods.alds_limits import budgets_asked, spectra_file
from compress_cli.methods.base import Measured, compare_counts
from compress_cli.methods.device_limits import device_asked, forms_ms, solve_for_device
from compress_cli.render.curves import Curve, lines, picture
from compress_cli.report import Achieved, Gate, LayerRow, Skipped
from compress_cli.translate import decomposition_errors
from decomposers import alds
from decomposers.alds_plan import Factored
from decomposers.errors import ProofFailed
from decomposers.moments import Moments
from decomposers.options import AldsOptions, Method, options_of
from decomposers.surgery import NETWORK_TOLERANCE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_cli.checkpoint import LoadedModel
    from compress_cli.config import RunConfig
    from compress_cli.quality import Quality
    from compress_cli.session import Session

SLOW = 1.02
"""Latency ratio from which grouped encoders are named as the cause."""

LARGE_SHARE = 0.2
"""Share of the parameters from which linear layers are sliced too. Where they are small, rank 1 of many slices costs
accuracy until the refit; where they are large, whole ones leave the convolutions too little of the budget: ResNet-20
with a 4096 x 256 layer keeps 90.6 of 90.8 % at 30 % of its parameters, with that layer whole 38.3 % (refitted 81.9 %);
`benchmarks/decompose_linear.py`."""

FEW_ZEROS = 0.02
"""Share of zeros that is no sign of pruning."""


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """The plan and the budgets it was made for; moments that its factors need (empty unless from images); curves.

    `remarks` are warnings about this model rather than about the plan.
    """

    plan: alds.AldsPlan
    budgets: tuple[Budget, ...]
    moments: Mapping[str, Moments] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The plan's document."""
        return self.plan.to_dict()

    def explain(self) -> str:
        """The plan as lines of text, with every layer's error at some sizes."""
        return "\n".join([self.plan.explain(), *lines(self.curves, self.plan.error)])


class Alds:
    """Two thinner layers for one: groups and rank of every layer chosen at once under one budget."""

    needs_module = True
    name: ClassVar[Method] = "alds"

    def check(self, config: RunConfig) -> None:
        """At least one budget, and options that go together."""
        if not any((config.max_params, config.max_flops, config.max_size, config.max_latency)):
            raise UsageError(
                f"--method {self.name} needs a budget",
                "pass --max-params 50%, --max-flops 50%, --max-size 4MB or --max-latency 80%",
            )
        if config.sparsity is not None:
            raise UsageError("--sparsity is for magnitude pruning", "pass --max-params, or prune the result afterwards")
        if config.max_size and not config.export:
            raise UsageError("--max-size needs the ONNX file", "drop --no-export, or use --max-params")
        if config.max_latency and not config.export:
            raise UsageError("--max-latency needs the ONNX file", "drop --no-export, or use --max-flops")
        options = self._options(config)
        if options.needs_images and not (config.calib or config.data or config.task):
            raise UsageError(
                f"the error {options.error!r} is measured on images", "add --calib DIR with some hundred of them"
            )

    def _options(self, config: RunConfig, linear_share: float = 0.0) -> AldsOptions:
        """The method's options with the flags over them; `linear_share` of the parameters is in linear layers.

        Raises:
            UsageError: a name or number that the method does not know, or a combination that makes no sense.
        """
        groups = config.max_groups
        if groups is None and config.max_latency:
            groups = 1  # grouped encoders save bytes and MACs, not time
        try:
            if self.name != "alds":
                if config.error or config.objective or config.schemes or config.max_groups not in (None, 1):
                    raise ValueError("--error, --objective, --schemes and --max-groups belong to --method alds")
                return options_of(self.name, config.ignore, config.only)
            given = {"objective": config.objective, "error": config.error, "schemes": _schemes(config.schemes)}
            known = {name: value for name, value in given.items() if value is not None}
            linear = config.linear_groups
            if linear is None:
                linear = linear_share >= LARGE_SHARE and not config.max_latency
            common = {"linear_groups": linear, "ignore": config.ignore, "only": config.only}
            return AldsOptions(max_groups=groups, **common, **known)  # type: ignore[arg-type]
        except ValueError as error:
            raise UsageError(str(error), "compress decompose --help lists what goes together") from error

    def plan(self, session: Session, loaded: LoadedModel, quality: Quality | None) -> Decision:
        """Compute the error of every form of every layer, and choose.

        Raises:
            UsageError: a budget that cannot be met, with the nearest one that can.
            UnsupportedModelError: nothing can be decomposed.
        """
        assert loaded.module is not None  # the pipeline has seen to both
        assert loaded.example_inputs is not None
        options, store = self._options(session.config, _linear_share(loaded.module)), spectra_file(session)
        images = tuple(quality.calibration()) if options.needs_images and quality is not None else ()
        with _gone_if_refused(store), decomposition_errors():
            with session.stage("spectra"):
                analysis = session.shared.once(
                    f"alds {options}", lambda: _analyse(session, loaded, options, images, store)
                )
            budgets = tuple(budgets_asked(session, loaded, analysis))
            timings = _timings(session, loaded.module, analysis) if any(b.quantity == "ms" for b in budgets) else None
            chosen = solve_for_device(session, loaded, analysis, budgets, timings)
            plan = alds.with_true_errors(chosen, loaded.module, analysis.moments)
        remarks = tuple(_lost_zeros(loaded.module, plan))
        decision = Decision(plan, budgets, analysis.moments, _curves(analysis, plan), remarks)
        if store is not None:
            with atomic_path(session.folder.file("decomposition.svg")) as temporary:
                temporary.write_text(picture(decision.curves, plan.error), encoding="utf-8")
        return decision

    def apply_(self, loaded: LoadedModel, plan: Decision) -> None:
        """Put pairs of layers in place of layers."""
        assert loaded.module is not None
        with decomposition_errors():
            alds.apply_(loaded.module, plan.plan, plan.moments)

    def settle(self, session: Session, loaded: LoadedModel, plan: Decision) -> Decision:
        """Training does not change the structure."""
        return plan

    def prove(self, original: nn.Module, loaded: LoadedModel, plan: Decision) -> dict[str, Any]:
        """Every pair equals the dense layer with the reconstructed weight, and so does the network.

        Raises:
            VerificationError: it does not.
        """
        assert loaded.module is not None
        assert loaded.example_inputs is not None
        try:
            found = alds.prove(original, loaded.module, plan.plan, loaded.example_inputs)
        except ProofFailed as error:
            raise VerificationError(
                str(error), "this is a bug in compress: please report it, and leave the layer out with --ignore"
            ) from error
        worst = max(found.layers.values(), default=0.0)
        return {
            "kind": "factors",
            "layers": len(found.layers),
            "worst_layer_difference": worst,
            "network_difference": found.network,
            "network_tolerance": NETWORK_TOLERANCE,
            "summary": f"{len(found.layers)} pairs of layers equal their dense layers with the reconstructed weights to"
            f" {worst:.1e} (float64), the network to {found.network:.1e} (float32)",
        }

    def constraint(self, module: nn.Module, plan: Decision) -> None:
        """Pairs are ordinary layers: nothing to enforce."""
        return

    def removed(self, module: nn.Module, plan: Decision) -> Any:
        """Recovery finds decoders by structure: layer `X` of the original is `X.0`, `X.1` now."""
        from compress_cli.recovery import Correspondence

        return Correspondence()

    def warnings(self, plan: Decision) -> tuple[str, ...]:
        """Grouped encoders, whatever else the plan says, and zeros that are lost."""
        return (*plan.plan.warnings, *plan.remarks)

    def skipped(self, plan: Decision) -> tuple[Skipped, ...]:
        """Layers left alone, and those that stay dense."""
        return tuple(Skipped(item.name, item.reason) for item in (*plan.plan.skipped, *plan.plan.kept))

    def achieved(self, config: RunConfig, plan: Decision, measured: Measured) -> tuple[Achieved, ...]:
        """Budgets against what was counted in the reloaded model; bytes and latency are gates.

        Raises:
            VerificationError: the model does not have the predicted parameters or MACs.
        """
        before, after = measured.complexity_before, measured.complexity_after
        compare_counts("parameters", plan.plan.params_before - plan.plan.params_after, before.params - after.params)  # type: ignore[union-attr]
        compare_counts("MACs", plan.plan.macs_before - plan.plan.macs_after, before.macs - after.macs)  # type: ignore[union-attr]
        rows = []
        for budget in plan.budgets:
            count = achieved_counts(budget, after)
            if count is not None:
                total = achieved_counts(budget, before) or 0
                rows.append(Achieved(budget.quantity, budget.asked, floor(budget.bound), count, total, exact=False))
        return tuple(rows)

    def gates(self, plan: Decision) -> tuple[Gate, ...]:
        """None of its own: the budgets are judged with the other limits."""
        return ()

    def layers(self, plan: Decision, measured: Measured) -> tuple[LayerRow, ...]:
        """One row per replaced layer, counted in the files."""
        return tuple(_row(layer, measured) for layer in plan.plan.layers)


class Svd(Alds):
    """The same share of the rank of every layer."""

    name: ClassVar[Method] = "svd"


class SvdEnergy(Alds):
    """The same share of the squared singular values of every layer."""

    name: ClassVar[Method] = "svd-energy"


class Pca(Alds):
    """The same share of the variance of every layer's output on images."""

    name: ClassVar[Method] = "pca"


def _schemes(text: str | None) -> tuple[int, ...] | None:
    """Read `0`, `0,3` or `all`.

    Raises:
        ValueError: anything else.
    """
    if text is None:
        return None
    if text == "all":
        return (0, 1, 2, 3)
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise ValueError(f"--schemes {text!r} is no list of numbers from 0 to 3, such as 0,3, and not `all`")
    return tuple(int(part) for part in parts)


@contextmanager
def _gone_if_refused(store: Path | None) -> Iterator[None]:
    """Remove spectra that this run wrote when its request cannot be met: a refused run leaves no folder."""
    known = store is not None and store.exists()
    try:
        yield
    except CompressError:
        if store is not None and not known:
            store.unlink(missing_ok=True)
        raise


def _analyse(
    session: Session, loaded: LoadedModel, options: AldsOptions, images: Sequence[Any], store: Path | None
) -> alds.Analysis:
    """The error of every form of every layer; spectra on the GPU when there is one."""
    from compress_cli.training.placing import choose_device

    assert loaded.module is not None
    inputs, device = loaded.example_inputs or (), choose_device(session.config.device)
    return alds.analyse(loaded.module, inputs, options, images=images, cache=store, device=device)


def _linear_share(module: nn.Module) -> float:
    """Share of the parameters that is in linear layers."""
    from torch import nn

    inside = {id(part.weight): part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear)}
    return sum(inside.values()) / max(sum(parameter.numel() for parameter in module.parameters()), 1)


def _lost_zeros(module: nn.Module, plan: alds.AldsPlan) -> Iterator[str]:
    """Say when layers that were pruned before get dense factors."""
    weights: list[Any] = [module.get_submodule(layer.name).weight for layer in plan.layers]
    zeros, total = sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)
    if zeros > total * FEW_ZEROS:
        yield (
            f"{zeros:,} of the {total:,} weights of the replaced layers were zero, their factors are dense:"
            " decompose first and prune the result to have both"
        )


def _curves(analysis: alds.Analysis, plan: alds.AldsPlan) -> dict[str, Curve]:
    """Error against the share of the weights, of every layer; a layer that stays dense is at (1, 0)."""
    chosen = {layer.name: layer for layer in plan.layers}
    found = {}
    for table in analysis.tables:
        name, whole = table.layer.name, float(table.weights[0])
        points = [(cost / whole, error) for cost, error, _ in alds.error_curve(analysis, name)]
        layer = chosen.get(name)
        found[name] = Curve(points, (layer.weights_after / whole, layer.minimised) if layer else (1.0, 0.0))
    return found


def _timings(session: Session, module: nn.Module, analysis: alds.Analysis) -> Any:
    """Milliseconds of candidate forms, for latency budgets; the same for all runs of a sweep."""
    device = device_asked(session.config)
    if device is not None:
        key = f"alds timings {analysis.options} {device.key} {device.threads}"
        return session.shared.once(key, lambda: forms_ms(module, analysis, device))
    from compress_cli.methods.layer_timings import measure_forms

    config = session.config
    with session.stage("layer timings", "Timing candidate forms of every layer"):
        return session.shared.once(
            f"alds timings {analysis.options}",
            lambda: measure_forms(module, analysis, config.threads, config.seed),
        )


def _row(layer: Factored, measured: Measured) -> LayerRow:
    """One replaced layer: its weight in the original file, the weights of its two halves in the written one."""
    before = measured.before[_name_in(measured.before, f"{layer.name}.weight")]
    prefix = f"{layer.name}."
    after = [tensor for name, tensor in measured.after.items() if name.startswith(prefix) and name.endswith("weight")]
    form = f"{layer.groups} x rank {layer.rank}" if layer.groups > 1 else f"rank {layer.rank}"
    scheme = f", scheme {layer.scheme}" if layer.scheme else ""
    return LayerRow(
        name=f"{layer.name}.weight",
        shape=tuple(before.shape),
        weights=before.numel(),
        zeros_before=_zeros(before),
        zeros_after=sum(map(_zeros, after)),
        weights_after=sum(tensor.numel() for tensor in after),
        change=f"{form}{scheme}, score {layer.score:.3f}",
    )


def _zeros(tensor: Tensor) -> int:
    return int((tensor == 0).sum())


def _name_in(tensors: Mapping[str, Tensor], name: str) -> str:
    """The name under which a file holds a tensor: torchvision's older names differ from the module's."""
    from compress_cli.checkpoint.names import modern_names

    if name in tensors:
        return name
    return next(old for old, modern in modern_names(tensors.keys()).items() if modern == name)
