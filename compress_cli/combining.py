"""`compress combine`: several methods one after the other on one network, accounted for against the original.

A step is a run of its own in `steps/` (network, plan, proof, report), which reads what the step before it wrote; only
the last one trains, exports and measures, and its report compares with the network that the first step began with.
The order is the one in which nothing is undone: decompose, then cut channels, then zero weights.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress_cli.config import RunConfig, with_settings
from compress_cli.console import Out
from compress_cli.errors import UsageError
from compress_cli.report import RunReport
from compress_cli.session import Chain, Shared

ORDER = (("alds", "svd", "svd-energy", "pca"), ("channels", "pagcp"), ("magnitude",))
"""Which methods may come before which."""
BUDGETS = ("sparsity", "max_params", "max_flops", "max_size", "max_latency")
EXAMPLE = "alds:max-params=70%, channels:max-flops=75% or magnitude:sparsity=0.8"


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One method with its own settings (`RunConfig` field -> text)."""

    method: str
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """As it is typed: `channels:max-flops=75%`."""
        words = ",".join(f"{name.replace('_', '-')}={value}" for name, value in self.settings)
        return f"{self.method}:{words}" if words else self.method

    @property
    def slug(self) -> str:
        """As a part of a folder's name."""
        values = [f"{name.replace('max_', '').replace('_', '-')}-{value}" for name, value in self.settings]
        return "-".join([self.method, *values]).replace("%", "pct").replace("/", "-")


def parse_step(text: str) -> Step:
    """`METHOD:KEY=VALUE,KEY=VALUE`, keys being flags of the verbs without their dashes.

    Raises:
        UsageError: an unknown method or key, or a setting without value.
    """
    method, _, rest = text.strip().partition(":")
    if method not in {name for group in ORDER for name in group}:
        valid = ", ".join(name for group in ORDER for name in group)
        raise UsageError(f"step {text!r}: the method {method!r} is unknown", f"valid: {valid}; for example {EXAMPLE}")
    settings = []
    for word in filter(None, (part.strip() for part in rest.split(","))):
        name, equals, value = word.partition("=")
        if not equals or not value:
            raise UsageError(f"step {text!r}: {word!r} is no KEY=VALUE", f"write it like {EXAMPLE}")
        settings.append((name.strip().lstrip("-").replace("-", "_"), value.strip()))
    return Step(method, tuple(settings))


def parse_steps(texts: Sequence[str]) -> tuple[Step, ...]:
    """Steps from separate texts or from texts joined by `+`, in an order that undoes nothing.

    Raises:
        UsageError: no step, or one that would undo an earlier one.
    """
    steps = tuple(parse_step(part) for text in texts for part in text.split("+") if part.strip())
    if not steps:
        raise UsageError("there are no steps", f"add --step, for example {EXAMPLE}")
    ranks = [next(rank for rank, group in enumerate(ORDER) if step.method in group) for step in steps]
    for earlier, later in zip(range(len(steps)), range(1, len(steps)), strict=False):
        if ranks[later] < ranks[earlier]:
            raise UsageError(
                f"step {steps[later].text!r} comes after {steps[earlier].text!r}, whose work it would undo",
                "give decompositions first, then channels, then magnitude",
            )
    return steps


def config_of(base: RunConfig, step: Step, *, last: bool) -> RunConfig:
    """The configuration of one step: the base's without budgets and gates, then the step's own settings.

    Raises:
        UsageError: a setting that a run does not have, or a wrong value.
    """
    cleared: dict[str, Any] = dict.fromkeys((*BUDGETS, "max_drop"))
    if not last:
        cleared |= {"epochs": 0, "bench": False, "safetensors": False, "schedule": "one-shot"}
    return with_settings(dataclasses.replace(base, **cleared, method=step.method), dict(step.settings), step.text)


def combine(
    base: RunConfig,
    steps: Sequence[Step],
    folder: Path,
    out: Out,
    *,
    resume: bool = False,
    overwrite: bool = False,
    baseline: Shared | None = None,
    home: Path | None = None,
) -> RunReport:
    """Run the steps; the last one's files lie in `folder`, the others' in `home`.

    Args:
        base: data, outputs and gates; gates are judged once, at the end, against the original.
        baseline: what is known of the original already (a sweep); else it is computed here.
        home: where earlier steps are kept and, if they are there already, taken from. Default: `folder`/steps.

    Raises:
        CompressError: of the step that failed; the steps before it are kept for `--resume`.
    """
    from compress_cli.pipeline import prime, run

    configs = [config_of(base, step, last=number == len(steps)) for number, step in enumerate(steps, 1)]
    if len(steps) == 1:
        own = dataclasses.replace(base, method=steps[0].method, output=str(folder))
        own = with_settings(own, dict(steps[0].settings), steps[0].text)
        return run(own, out, resume=resume, overwrite=overwrite, shared=baseline)
    keep = home or folder / "steps"
    if overwrite and home is None:
        shutil.rmtree(keep, ignore_errors=True)
    own_baseline = baseline is None
    baseline = baseline or Shared(keep / ".original")
    try:
        checkpoint = prime(dataclasses.replace(base, method=steps[0].method), out, baseline)
        earlier: tuple[Mapping[str, Any], ...] = ()
        source = base.checkpoint
        for number, (step, config) in enumerate(zip(steps, configs, strict=True), 1):
            last = number == len(steps)
            slug = "+".join(item.slug for item in steps[:number])
            place = folder if last else keep / slug
            out.info(f"Step {number} of {len(steps)}: {step.text}")
            chain = Chain(step.text, last, earlier, baseline, checkpoint, base.limits())
            report = run(
                dataclasses.replace(config, checkpoint=source, output=str(place)),
                out,
                resume=resume if last else place.exists(),
                overwrite=overwrite and last,
                shared=baseline if number == 1 else Shared(keep / f".{slug}"),
                chain=chain,
            )
            earlier, source = report.steps, str(place / "model.pt")
        return report
    finally:
        if own_baseline:
            for scratch in keep.glob(".*"):
                shutil.rmtree(scratch, ignore_errors=True)


__all__ = ["Step", "combine", "config_of", "parse_step", "parse_steps"]
