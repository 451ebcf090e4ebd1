"""`--method magnitude`: `pruners.magnitude` behind the pipeline's interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compress_cli.config import RECOVERY_SCORE
from compress_cli.errors import UnsupportedModelError, UsageError, VerificationError
from compress_cli.methods import priced
from compress_cli.methods.base import BUG, Measured
from compress_cli.report import Achieved, Gate, LayerRow, Skipped
from compress_cli.translate import pruning_errors
from pruners import magnitude
from pruners.magnitude_options import SCORES, count_zeros_asked, parse_floor, parse_sparsity

if TYPE_CHECKING:
    from torch import nn

    from compress_cli.checkpoint import LoadedModel
    from compress_cli.config import RunConfig
    from compress_cli.quality import Quality
    from compress_cli.session import Session


class Magnitude:
    """Zero the smallest weights under one threshold; shapes and names stay."""

    needs_module = False

    def check(self, config: RunConfig) -> None:
        """A readable sparsity and floor."""
        if config.sparsity is None:
            raise UsageError("magnitude pruning needs a sparsity", "pass the share of zeros, such as --sparsity 0.9")
        if config.score not in (None, *SCORES, RECOVERY_SCORE):
            names = ", ".join(SCORES)
            raise UsageError(
                f"--score {config.score} ranks channels", f"pass --score {names} or recovery, or add --method channels"
            )
        if config.scope == "isomorphic":
            raise UsageError("--scope isomorphic ranks channels", "pass --scope global or layer, or --method channels")
        with pruning_errors():
            parse_sparsity(config.sparsity)
            parse_floor(config.floor, 0)
            _options(config)
        if config.schedule != "one-shot" and not (config.data or config.task):
            raise UsageError(
                f"--schedule {config.schedule} prunes while training, and there is no training data",
                "add --data DIR or --task FILE, or drop --schedule",
            )
        if config.score == RECOVERY_SCORE and not config.calib:
            raise UsageError(
                "--score recovery is measured on images, and the weights that stay are solved on them",
                "add --calib DIR with a few hundred unlabelled images",
            )
        if config.score == RECOVERY_SCORE and config.schedule != "one-shot":
            raise UsageError(f"--score recovery chooses once, not by --schedule {config.schedule}", "drop one of them")

    def plan(
        self, session: Session, loaded: LoadedModel, quality: Quality | None
    ) -> magnitude.MagnitudePlan | priced.PricedPlan:
        """Rank every weight that feeds a convolution or matrix product and find the exact cut."""
        if session.config.score == RECOVERY_SCORE:
            return _priced(session, loaded, quality)
        with pruning_errors():
            return magnitude.plan(_candidates(loaded), _options(session.config))

    def apply_(self, loaded: LoadedModel, plan: magnitude.MagnitudePlan | priced.PricedPlan) -> None:
        """Write the zeros."""
        with pruning_errors():
            if isinstance(plan, priced.PricedPlan):
                assert loaded.module is not None
                return priced.apply_(loaded.module, plan)
            magnitude.apply_(loaded.module if loaded.module is not None else loaded.tensors, plan)

    def settle(self, session: Session, loaded: LoadedModel, plan: magnitude.MagnitudePlan) -> magnitude.MagnitudePlan:
        """After training that ranked anew, the cuts are those of the last selection: the zeros that are there."""
        if session.config.schedule == "one-shot":
            return plan
        with pruning_errors():
            return magnitude.plan(_candidates(loaded), _options(session.config))

    def prove(self, original: nn.Module, loaded: LoadedModel, plan: magnitude.MagnitudePlan) -> None:
        """Zeros are counted in the written file instead."""
        return

    def constraint(self, module: nn.Module, plan: magnitude.MagnitudePlan) -> Any:
        """The zeros as masks."""
        from pruners.masks import Masks

        return Masks(module, plan.names)

    def removed(self, module: nn.Module, plan: magnitude.MagnitudePlan) -> Any:
        """The names of the masked tensors."""
        return plan.names

    def warnings(self, plan: magnitude.MagnitudePlan) -> tuple[str, ...]:
        """Thin tensors, zeros beyond the request."""
        return plan.warnings

    def skipped(self, plan: magnitude.MagnitudePlan) -> tuple[Skipped, ...]:
        """Tensors that were not ranked."""
        return tuple(Skipped(item.name, item.reason) for item in plan.left_out)

    def achieved(self, config: RunConfig, plan: magnitude.MagnitudePlan, measured: Measured) -> tuple[Achieved, ...]:
        """Zeros among the ranked weights of the written file.

        Raises:
            VerificationError: the file holds fewer zeros than were written into it.
        """
        found = sum(magnitude.count_zeros(_chosen(plan, measured.after)).values())
        asked = count_zeros_asked(str(config.sparsity), plan.weights)
        expected = max(asked, plan.zeros_before)
        if found < expected:
            raise VerificationError(
                f"the written model holds {found:,} zeros, {expected:,} were made",
                BUG,
            )
        return (Achieved("sparsity", str(config.sparsity), asked, found, plan.weights),)

    def gates(self, plan: magnitude.MagnitudePlan) -> tuple[Gate, ...]:
        """None of its own: the budgets are judged with the other limits."""
        return ()

    def layers(self, plan: magnitude.MagnitudePlan, measured: Measured) -> tuple[LayerRow, ...]:
        """One row per ranked tensor."""
        before = magnitude.count_zeros(_chosen(plan, measured.before))
        after = magnitude.count_zeros(_chosen(plan, measured.after))
        return tuple(
            LayerRow(cut.name, cut.shape, cut.numel, before[name], after[name])
            for name, cut in zip((_name(cut, measured.after) for cut in plan.cuts), plan.cuts, strict=True)
        )


def _options(config: RunConfig) -> magnitude.MagnitudeOptions:
    score = config.score if config.score in SCORES else "magnitude"
    return magnitude.MagnitudeOptions(
        str(config.sparsity),
        config.scope,  # type: ignore[arg-type]
        score,
        config.floor,
        config.ignore,
        config.only,
    )


def _priced(session: Session, loaded: LoadedModel, quality: Quality | None) -> priced.PricedPlan:
    """Choose by the price after recovery.

    Raises:
        UnsupportedModelError: there is no network to run, or it cannot be traced.
    """
    from compress_cli.recovering import recovery_errors

    if loaded.module is None or quality is None:
        raise UnsupportedModelError(
            f"--score recovery runs the network, but {loaded.missing_reason}", "pass --arch (and --input-shape)"
        )
    batches = list(quality.calibration())
    with pruning_errors(), recovery_errors(), session.out.progress("Choosing") as bar:
        return priced.plan(
            loaded.module, _options(session.config), batches, seed=session.config.seed, on_step=bar.update
        )


def _candidates(loaded: LoadedModel) -> magnitude.Candidates:
    if loaded.module is not None:
        return magnitude.candidates_in_module(loaded.module)
    return magnitude.candidates_in_state_dict(loaded.tensors)


def _name(cut: magnitude.Cut, tensors: Any) -> str:
    """The name under which a file holds a tensor: torchvision's older names differ from the module's."""
    from compress_cli.checkpoint.names import modern_names

    for name in (cut.name, *cut.aliases):
        if name in tensors:
            return name
    old = {modern: name for name, modern in modern_names(tensors.keys()).items()}
    return next(old[name] for name in (cut.name, *cut.aliases) if name in old)


def _chosen(plan: magnitude.MagnitudePlan, tensors: Any) -> dict[str, Any]:
    names = [_name(cut, tensors) for cut in plan.cuts]
    return {name: tensors[name] for name in names}
