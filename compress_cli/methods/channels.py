"""`--method channels`: `pruners.channels` behind the pipeline's interface: whole channels go, ranked by one score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Any

from compress_cli.errors import UsageError, VerificationError
from compress_cli.methods.base import BUG, Measured, compare_counts
from compress_cli.methods.channel_scores import Scorer, check_score
from compress_cli.methods.device_limits import cut_for_device, device_asked, limit_asked
from compress_cli.methods.file_limits import check_file_limits, cut_for_file, file_limit
from compress_cli.report import Achieved, Gate, LayerRow, Skipped
from compress_cli.translate import channel_errors

if TYPE_CHECKING:
    from torch import nn

    from compress_cli.checkpoint import LoadedModel
    from compress_cli.config import RunConfig
    from compress_cli.quality import Quality
    from compress_cli.quantities import Limit
    from compress_cli.session import Session
    from pruners.channels import Budget, ChannelsPlan, Fitted, Groups, SelectionOptions


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """The fitted plan, its proof, and the limits that it was made for."""

    fitted: Fitted
    limits: tuple[Limit, ...]

    @property
    def keep(self) -> Mapping[str, Mapping[int, tuple[int, ...]]]:
        """What stays, as recovery reads it."""
        return self.fitted.plan.keep

    def to_dict(self) -> dict[str, Any]:
        """The channels plan's document, with its proofs."""
        return {**self.fitted.plan.to_dict(), "proofs": self.fitted.proof.to_dict()}

    def explain(self) -> str:
        """The plan as lines of text, with the ways that could not be proved."""
        return "\n".join([*self.fitted.plan.explain(), *(f"not possible: {text}" for text in self.fitted.refused)])


class Channels:
    """Remove the channels that matter least until the budget holds, everywhere in the network at once."""

    needs_module = True

    def check(self, config: RunConfig) -> None:
        """A budget that channels can be counted against, and options that go together."""
        if not (config.max_flops or config.max_params or limit_asked(config) or file_limit(config)):
            raise UsageError(
                "--method channels needs a budget",
                "pass --max-flops 50%, --max-params 50%, --max-size 4MB, --max-latency 60% or mobile:DEVICE=60%",
            )
        device_asked(config)
        check_file_limits(config)
        if config.sparsity is not None:
            raise UsageError("--sparsity is for magnitude pruning", "pass --max-flops, or prune the result afterwards")
        if config.schedule != "one-shot":
            raise UsageError(f"--schedule {config.schedule} is for magnitude pruning", "drop --schedule")
        with channel_errors():
            _selection(config)
            check_score(config)

    def plan(self, session: Session, loaded: LoadedModel, quality: Quality | None) -> Decision:
        """Group, score, choose to the budget, and find the gentlest cut that can be proved.

        Raises:
            UsageError: a budget that cannot be met, with the nearest one that can.
            UnsupportedModelError: the network cannot be traced, or nothing may go.
            VerificationError: no way of cutting could be proved.
        """
        from pruners.channels import CostModel, analyse, fit
        from pruners.channels import plan as choose_plan

        assert loaded.module is not None  # the pipeline has seen to both
        assert loaded.example_inputs is not None
        config, module, inputs = session.config, loaded.module, loaded.example_inputs
        with channel_errors(), session.stage("channel groups"):
            key = f"channel groups {config.ignore} {config.only}"
            groups: Groups = session.shared.once(
                key, lambda: analyse(module, inputs, ignore=config.ignore, only=config.only)
            )
        selection, scorer = _selection(config), Scorer(session, quality, module)
        whole = CostModel(groups)
        budget, limits = _budget(config, whole)

        def cut(most: Budget) -> Fitted:
            def choose(found: Groups) -> ChannelsPlan:
                return choose_plan(found, scorer(found), most, selection, more=scorer.recorded)

            return fit(module, inputs, groups, choose)

        with channel_errors(), session.stage("cut", "Cutting and proving"):
            if limit_asked(config):
                fitted = cut_for_device(session, loaded, cut, budget, whole.macs)
            elif file_limit(config):
                fitted = cut_for_file(session, loaded, cut, budget, whole)
            else:
                fitted = cut(budget)
        note_uneven_widths(session, fitted.plan)
        return Decision(fitted, limits)

    def apply_(self, loaded: LoadedModel, plan: Decision) -> None:
        """Cut the network's tensors."""
        from pruners.channels import apply_

        assert loaded.module is not None
        with channel_errors():
            apply_(loaded.module, plan.fitted.plan)

    def settle(self, session: Session, loaded: LoadedModel, plan: Decision) -> Decision:
        """Training does not change the structure."""
        return plan

    def prove(self, original: nn.Module, loaded: LoadedModel, plan: Decision) -> dict[str, Any]:
        """The network is, tensor by tensor and output by output, the one whose proofs passed while planning.

        Raises:
            VerificationError: it is not.
        """
        import torch

        from exporters.outputs import evaluating, flatten_outputs

        proved, module, inputs = plan.fitted.model, loaded.module, loaded.example_inputs
        assert module is not None
        assert inputs is not None
        wanted, found = proved.state_dict(), module.state_dict()
        same = wanted.keys() == found.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
        if same:
            with evaluating(proved), evaluating(module):
                pairs = (flatten_outputs(proved(*inputs)), flatten_outputs(module(*inputs)))
            same = all(torch.equal(pairs[0][name], pairs[1][name]) for name in pairs[0])
        if not same:
            raise VerificationError("the plan cut the network differently from the proved copy", BUG)
        proof = plan.fitted.proof
        summary = "the small network is the original with channels masked: " + "; ".join(
            f"{check.name}: {check.detail}" for check in proof.checks
        )
        return {"kind": "channels", "tier": plan.fitted.plan.tier, **proof.to_dict(), "summary": summary}

    def constraint(self, module: nn.Module, plan: Decision) -> None:
        """Smaller layers are ordinary layers: nothing to enforce."""
        return

    def removed(self, module: nn.Module, plan: Decision) -> Any:
        """The channels plan, whose kept indices recovery reads."""
        return plan.fitted.plan

    def warnings(self, plan: Decision) -> tuple[str, ...]:
        """The tier where it is not plain, operators that count channels, and whatever else the plan says."""
        found = plan.fitted.plan
        lines = list(found.warnings)
        if found.tier > 1:
            from pruners.channels.plan_type import TIERS

            lines.append(f"tier {found.tier}: {TIERS[found.tier]} (because: {plan.fitted.refused[0]})")
        if found.not_zeroing:
            shown = ", ".join(found.not_zeroing[:3]) + (" ..." if len(found.not_zeroing) > 3 else "")
            lines.append(f"operators that count channels now count fewer: {shown}")
        return tuple(lines)

    def skipped(self, plan: Decision) -> tuple[Skipped, ...]:
        """Output channels that had to stay, with reasons."""
        return skipped_rows(plan.fitted.groups)

    def achieved(self, config: RunConfig, plan: Decision, measured: Measured) -> tuple[Achieved, ...]:
        """The budgets against what was counted in the reloaded model.

        Raises:
            VerificationError: the model does not have the predicted parameters or MACs.
        """
        before, after, made = measured.complexity_before, measured.complexity_after, plan.fitted.plan
        compare_counts("parameters", made.params_before - made.params_after, before.params - after.params)  # type: ignore[union-attr]
        if not made.options.get("form"):  # a detector's MACs depend on its proposals, and those on the weights
            compare_counts("MACs", made.macs_before - made.macs_after, before.macs - after.macs)  # type: ignore[union-attr]
        rows = []
        for limit in plan.limits:
            total, count = int(getattr(before, limit.kind)), int(getattr(after, limit.kind))
            rows.append(Achieved(limit.kind, limit.text, floor(limit.bound(total) or 0), count, total, exact=False))
        return tuple(rows)

    def gates(self, plan: Decision) -> tuple[Gate, ...]:
        """None of its own: the budgets are judged with the other limits."""
        return ()

    def layers(self, plan: Decision, measured: Measured) -> tuple[LayerRow, ...]:
        """One row per cut weight, counted in the files."""
        return layer_rows(plan.fitted.plan, measured)


def skipped_rows(groups: Groups) -> tuple[Skipped, ...]:
    """Frozen output channels of weights, with reasons."""
    frozen = (item for item in groups.frozen if item.dim == 0 and item.tensor.endswith("weight"))
    return tuple(Skipped(f"{item.tensor}: {item.count} of {item.size}", str(item.reason)) for item in frozen)


def layer_rows(plan: Any, measured: Measured) -> tuple[LayerRow, ...]:
    """One row per cut weight of a `ChannelsPlan`."""
    rows = []
    for tensor, dims in plan.keep.items():
        shape = plan.shapes[tensor]
        if len(shape) < 2:
            continue
        before = measured.before[name_in(measured.before, tensor)]
        after = measured.after[name_in(measured.after, tensor)]
        words = [f"{shape[dim]} -> {len(kept)} {_DIM.get(dim, f'of dim {dim}')}" for dim, kept in dims.items()]
        rows.append(
            LayerRow(
                name=tensor,
                shape=shape,
                weights=before.numel(),
                zeros_before=int((before == 0).sum()),
                zeros_after=int((after == 0).sum()),
                weights_after=after.numel(),
                change=", ".join(words),
            )
        )
    return tuple(rows)


BLOCK = 8
"""Channels that ONNX Runtime's convolutions on a CPU compute at a time (benchmarks/results/channels_latency.json)."""
_DIM = {0: "output channels", 1: "input channels"}


def name_in(tensors: Mapping[str, Any], name: str) -> str:
    """The name under which a file holds a tensor: torchvision's older names differ from the module's."""
    from compress_cli.checkpoint.names import modern_names

    if name in tensors:
        return name
    return next(old for old, modern in modern_names(tensors.keys()).items() if modern == name)


def note_uneven_widths(session: Session, plan: ChannelsPlan) -> None:
    """Say what it costs at run time where the number of channels is no multiple of 8 any more."""
    widths = [
        len(dims[0])
        for tensor, dims in plan.keep.items()
        if len(plan.shapes[tensor]) > 1 and 0 in dims and plan.shapes[tensor][0] % BLOCK == 0
    ]
    uneven = sum(width % BLOCK != 0 for width in widths)
    if uneven:
        session.note(
            f"{uneven} of {len(widths)} narrower layers keep a number of channels that is no multiple of {BLOCK};"
            f" CPU runtimes compute those slower for their MACs: try --round-to {BLOCK} where latency counts"
        )


def _selection(config: RunConfig) -> SelectionOptions:
    from pruners.channels import SelectionOptions

    return SelectionOptions(config.scope, config.round_to, config.min_channels)


def _budget(config: RunConfig, cost: Any) -> tuple[Budget, tuple[Limit, ...]]:
    """The limits on params and MACs in absolute numbers, and the limits themselves."""
    from pruners.channels import Budget

    limits = tuple(limit for limit in config.limits() if limit.kind in ("macs", "params"))
    bounds = {limit.kind: floor(limit.bound(getattr(cost, limit.kind)) or 0) for limit in limits}
    return Budget(bounds.get("params"), bounds.get("macs")), limits
