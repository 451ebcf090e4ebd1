"""`prune --steps N`: channels go in N equal shares, with training after each, as steps of one combined run.

Every step ranks the channels of the network that the step before it left (and trained), and keeps the N-th root of the
share asked for; the end is accounted for against the original.
"""

from __future__ import annotations

from math import floor
from pathlib import Path
from typing import TYPE_CHECKING

from compress_cli.combining import Step
from compress_cli.config import resolve
from compress_cli.console import Out
from compress_cli.errors import EXIT_GATE, EXIT_OK, UsageError

if TYPE_CHECKING:
    from compress_cli.commands.common import RunFlags
    from compress_cli.config import RunConfig

BUDGETS = {"macs": "max_flops", "params": "max_params"}


def steps_of(config: RunConfig, count: int) -> tuple[Step, ...]:
    """The steps, each with its own budget relative to the step before it, and the epochs that each trains.

    Raises:
        UsageError: fewer than 2 steps, another method, or a budget that cannot be shared out.
    """
    if count < 2:
        raise UsageError(f"--steps {count} is no row of steps", "give 2 or more, or drop --steps for one cut")
    if config.method not in ("channels", "pagcp"):
        raise UsageError(f"--steps is for channels, not for {config.method}", "use --schedule for magnitude pruning")
    limits = [limit for limit in config.limits() if limit.kind in BUDGETS]
    if not limits or config.max_loss_rise:
        raise UsageError("--steps shares out --max-flops or --max-params", "pass one of them as a percentage")
    absolute = next((limit for limit in limits if not limit.relative), None)
    if absolute is not None:
        raise UsageError(f"--steps needs a share, not {absolute.text}", f"give {absolute.name} as a percentage")
    if (config.data or config.task) and config.epochs is None:
        raise UsageError("--steps trains after each step", "say for how long: --epochs 2, or --epochs 0 for not at all")
    settings = [
        (BUDGETS[limit.kind], f"{floor(limit.value ** (1 / count) * 1e8) / 1e6:.6f}%")  # rounded down: never overshot
        for limit in limits
    ]
    if config.epochs is not None:
        settings.append(("epochs", str(config.epochs)))
    return (Step(config.method, tuple(settings)),) * count


def prune_in_steps(flags: RunFlags, count: int) -> int:
    """Run the steps, print the report of the whole, and return the exit code."""
    out = Out(as_json=flags.as_json, quiet=flags.quiet, verbose=flags.verbose)
    base = resolve("prune", flags.checkpoint, flags.settings, flags.config_file)
    steps = steps_of(base, count)
    name = Path(base.checkpoint).name.split(".")[0]
    folder = Path(base.output or f"runs/{name}-{base.method}-{count}-steps")

    from compress_cli.combining import combine
    from compress_cli.render.text import render_report

    report = combine(base, steps, folder, out, resume=flags.resume, overwrite=flags.overwrite)
    out.result(report.to_dict(), lambda console: render_report(report, console))
    return EXIT_OK if report.ok or base.exit_zero else EXIT_GATE
