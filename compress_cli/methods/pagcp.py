"""`--method pagcp`: `pruners.pagcp` behind the pipeline's interface: channels go, no task gets worse than allowed."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Any

from torch.utils import _pytree as pytree

from compress_cli.errors import InputError, UsageError
from compress_cli.methods.channel_scores import MEASURED
from compress_cli.methods.channels import Channels, note_uneven_widths
from compress_cli.report import Gate
from compress_cli.translate import channel_errors

if TYPE_CHECKING:
    from compress_cli.checkpoint import LoadedModel
    from compress_cli.config import RunConfig
    from compress_cli.quality import Quality
    from compress_cli.quantities import Limit
    from compress_cli.session import Session
    from pruners.channels import Fitted
    from pruners.pagcp import FinalCheck, Found, PagcpOptions, TaskData

SCORES = {None: None, "fisher": "fisher", "l1": "l1", MEASURED: "fisher"}
"""`--score` -> the library's name; None: the search's own."""
ROUNDS = 20
"""Sweeps at most on the way to a cost limit."""


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """The proved cut with the search's record, and the limit on the cost that it was made for."""

    found: Found
    limits: tuple[Limit, ...]

    @property
    def fitted(self) -> Fitted:
        """The cut network, its plan and its proof."""
        return self.found.fitted

    @property
    def keep(self) -> Mapping[str, Mapping[int, tuple[int, ...]]]:
        """What stays, as recovery reads it."""
        return self.found.plan.keep

    def to_dict(self) -> dict[str, Any]:
        """The channels plan's document, with its proofs, and the search under `pagcp`."""
        from compress_cli.rundir import finite

        proofs = self.fitted.proof.to_dict()
        document = {**self.found.plan.to_dict(), "proofs": proofs, "pagcp": self.found.record.to_dict()}
        written: dict[str, Any] = finite(document)  # a diverged candidate has an infinite loss
        return written

    def explain(self) -> str:
        """The plan, the sensitivity table and the check as lines of text."""
        return "\n".join([*self.found.plan.explain(), *_sensitivity(self.found), *_check_lines(self.found)])


class Pagcp(Channels):
    """Whole channels go, ranked over all layers by what the worst task loses per MAC; cut and proved as channels."""

    def check(self, config: RunConfig) -> None:
        """A limit to search for, data to judge by, and options that go together."""
        if not (config.max_loss_rise or config.max_flops or config.max_params):
            raise UsageError(
                "--method pagcp needs a limit", "pass --max-flops 60%, or --max-loss-rise 5% (or seg=3%,depth=5%)"
            )
        if config.max_flops and config.max_params:
            raise UsageError("--max-flops and --max-params were both given", "pagcp searches for one of them: drop one")
        if config.sparsity is not None:
            raise UsageError("--sparsity is for magnitude pruning", "pass --max-flops, or prune the result afterwards")
        if config.schedule != "one-shot":
            raise UsageError(f"--schedule {config.schedule} is for magnitude pruning", "drop --schedule")
        if not (config.task or config.data or config.calib):
            raise UsageError(
                "--method pagcp judges by the tasks' losses on images",
                "pass --task FILE or --data DIR, or --calib DIR to compare with the original's own outputs",
            )
        if config.calib_samples < 2:
            raise UsageError("--calib-samples below 2 leaves nothing to judge by", "pass --calib-samples 1024")
        if config.rounds is not None and config.search == "path" and not config.reference:
            raise UsageError("--rounds is for --search sweep", "add --search sweep, or drop --rounds")
        if config.score not in SCORES:
            raise UsageError(
                f"--score {config.score} is for other methods",
                "drop it (pagcp ranks by Fisher information), or pass --score fisher, l1 or measured",
            )
        if config.scope != "global":
            raise UsageError(f"--scope {config.scope} is for other methods", "drop --scope: pagcp ranks globally")
        if config.reference and config.score == "fisher":
            raise UsageError("--reference ranks by l1", "drop --score, or use --search sweep --score fisher")
        if config.score == MEASURED and (config.reference or config.search == "sweep"):
            raise UsageError("--score measured is for --search path", "drop --score, --reference and --search sweep")
        parse_rises(config.max_loss_rise)

    def plan(self, session: Session, loaded: LoadedModel, quality: Quality | None) -> Any:
        """Search, and check every task on a cut copy.

        Raises:
            UsageError: a limit that cannot be met, or for a task that is not there.
            UnsupportedModelError: no channel may go.
        """
        assert loaded.module is not None  # the pipeline has seen to both
        assert loaded.example_inputs is not None
        if quality is None or not quality.can_recalibrate:
            raise InputError("there are no calibration images", "pass --calib DIR, or a task file with train_data()")
        from compress_cli.methods.pagcp_data import task_data
        from pruners.channels import analyse
        from pruners.pagcp import plan

        config, original = session.config, loaded.module
        with channel_errors(), session.stage("channel groups"):
            key = f"channel groups {config.ignore} {config.only}"
            groups = session.shared.once(
                key, lambda: analyse(original, loaded.example_inputs or (), ignore=config.ignore, only=config.only)
            )
        module = copy.deepcopy(original).to(quality.device).eval()
        inputs = pytree.tree_map(lambda x: x.to(quality.device) if hasattr(x, "to") else x, loaded.example_inputs)
        data = task_data(quality, module)
        _note_data(session, quality)
        limit = _cost_limit(config)
        options = _options(config, limit, tuple(data.floors), groups, _batch_statistics(quality, data))
        before = quality.original(module)
        bars: dict[str, Any] = {}
        titles = {
            "sensitivity": "Sensitivity of each group",
            "measured": "Measuring each group",
            "search": "Searching under the tasks' limits",
        }

        def on_step(part: str, done: int, total: int) -> None:
            if part not in bars:
                bars[part] = session.out.progress(titles[part]).__enter__()
            bars[part].update(done, total)

        try:
            with channel_errors(), session.stage("search"):
                found = plan(
                    module,
                    inputs,
                    data,
                    options,
                    groups=groups,
                    recalibrate=lambda small, cut: quality.reestimate_batchnorm_(small, teacher=before, removed=cut),
                    on_step=on_step,
                )
        finally:
            for bar in bars.values():
                bar.__exit__(None, None, None)
        note_uneven_widths(session, found.plan)
        return Decision(found, () if limit is None else (limit,))

    def warnings(self, plan: Any) -> tuple[str, ...]:
        """Bounds that do not hold, a plan that removes nothing, and whatever the plan says."""
        record, check = plan.found.record, plan.found.record.check
        lines = list(super().warnings(plan))
        if check.holds is False:
            lines.append(
                f"the loss of {check.worst} rises by {check.rises[check.worst]:.1%} before fine-tuning,"
                f" {check.bounds[check.worst]:.1%} is allowed"
            )
        if not plan.found.plan.units_removed and record.found > (record.target or 0):
            lines.append("no channel can go within these limits: the network stays as it is")
        if record.met is False:
            lines.append(f"{record.found:,} {record.quantity} are left, {record.target:,} were asked for")
        return tuple(lines)

    def gates(self, plan: Any) -> tuple[Gate, ...]:
        """Every task's loss on the cut network, before fine-tuning, against its bound."""
        check = plan.found.record.check
        return tuple(
            Gate(
                name=f"max-loss-rise {task}",
                level="error",
                limit=f"{100 * bound:.6g}%",
                value=100 * check.rises[task],
                bound=100 * bound,
                unit="percent",
                passed=check.rises[task] <= bound,
                message=f"before fine-tuning, on {_judged_by(check)}",
            )
            for task, bound in check.bounds.items()
        )


def parse_rises(text: str | None) -> dict[str, float]:
    """Read `5%` (every task, under the name "") or `seg=3%,depth=0.05`.

    Raises:
        UsageError: anything else.
    """
    found: dict[str, float] = {}
    for part in (text or "").split(",") if text else ():
        name, _, value = part.rpartition("=")
        match = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(%?)\s*", value)
        try:
            number = float(match.group(1)) if match else -1.0
        except ValueError:
            number = -1.0
        if match is None or number < 0 or ("=" in part and not name.strip()):
            raise UsageError(
                f"--max-loss-rise {text!r} cannot be read", "write 5% for every task, or seg=3%,depth=5% for each"
            )
        if name.strip() in found:
            raise UsageError(f"--max-loss-rise names {name.strip() or 'all tasks'} twice", "give each task one limit")
        found[name.strip()] = number / 100 if match.group(2) else number
    return found


def _options(
    config: RunConfig, limit: Limit | None, tasks: tuple[str, ...], groups: Any, batch_statistics: bool
) -> PagcpOptions:
    from pruners.channels import CostModel
    from pruners.pagcp import PagcpOptions, reference

    given = parse_rises(config.max_loss_rise)
    general = given.pop("", None)
    unknown = next((name for name in given if name not in tasks), None)
    if unknown is not None:
        raise UsageError(f"--max-loss-rise names a task {unknown!r}", f"the tasks are {', '.join(tasks)}")
    rises = {task: given.get(task, general) for task in tasks}
    cost = CostModel(groups)
    values: dict[str, Any] = {
        "max_rise": {task: rise for task, rise in rises.items() if rise is not None},
        "batch_statistics": batch_statistics,
        "score": SCORES[config.score],
        "measured": config.score == MEASURED,
        "min_channels": config.min_channels,
        "round_to": config.round_to,
    }
    if limit is not None:
        quantity = "macs" if limit.kind == "macs" else "params"
        values |= {"quantity": quantity, "target": floor(limit.bound(getattr(cost, quantity)) or 0)}
    if config.search == "sweep" or config.reference:
        values |= {"search": "sweep", "rounds": config.rounds or (ROUNDS if limit is not None else 1)}
    with channel_errors():
        if config.reference:
            return reference(**{**values, "batch_statistics": False, "score": "l1"})
        return PagcpOptions(**values)


def _batch_statistics(quality: Quality, data: TaskData) -> bool:
    """Whether the search may normalise by the batch: labels to judge by, and enough images for a mean."""
    from pruners.batchnorm import SMALLEST_BATCH

    labelled = quality.data.calib_labelled and bool(quality.tasks)
    return labelled and min(len(batch) for batch in data.batches) >= SMALLEST_BATCH


def _cost_limit(config: RunConfig) -> Limit | None:
    return next((limit for limit in config.limits() if limit.kind in ("macs", "params")), None)


def _note_data(session: Session, quality: Quality) -> None:
    if not (quality.data.calib_labelled and quality.tasks):
        session.note(
            "without labels each output is judged by its squared distance to the original's, over its variance;"
            " the rise counts from 5 % of the variance: +100 % is a distance of 5 %"
        )
        return
    if quality.data.calib is quality.data.train and quality.data.train is not None:
        session.note(
            "the search judges by training images, whose losses are lower than unseen ones':"
            " give held-out images with calib_data() in the task file"
        )


def _sensitivity(found: Found) -> list[str]:
    rows = found.record.sensitivity
    if not rows:
        return []
    lines = ["", "Sensitivity: each group alone, its least channels switched off; rise of each task's loss"]
    width = max(len(row.group) for row in rows)
    for row in rows:
        rises = ", ".join(f"{task} {rise:+.1%}" for task, rise in row.rises.items())
        what = f"-{row.removed} of {row.channels}, {row.macs_saved:,} MACs"
        lines.append(f"{row.group:<{width}}  {what}: {rises}  (most: {row.task})")
    return lines


def _judged_by(check: FinalCheck) -> str:
    seen = "that the search did not see" if check.held_out else "of the search"
    return f"{check.samples:,} calibration images {seen}"


def _check_lines(found: Found) -> list[str]:
    record, check = found.record, found.record.check
    lines = ["", f"{record.quantity}: {record.dense:,} -> {record.found:,} ({record.found / record.dense:.1%})"]
    lines.append(f"judged on {_judged_by(check)}:")
    for task, rise in check.rises.items():
        bound = f", allowed {check.bounds[task]:.1%}" if task in check.bounds else ""
        lines.append(f"loss of {task}: {check.before[task]:.4g} -> {check.after[task]:.4g} ({rise:+.1%}{bound})")
    passes = f"{record.full_forwards:.1f} full forward passes over {record.samples:,} samples"
    lines.append(f"search: {passes} for {record.calls} tries")
    return lines
