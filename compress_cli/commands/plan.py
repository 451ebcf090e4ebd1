"""`compress plan`: what a run would change, layer by layer; nothing is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compress_cli import options as o
from compress_cli.commands.common import RunFlags
from compress_cli.commands.groups import CALL, DATA, MODEL, takes
from compress_cli.config import resolve
from compress_cli.console import Out

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = """Examples:

compress plan resnet50.pth --sparsity 0.9

compress plan net.th --arch nets.py:resnet56 --sparsity 95% --ignore 'fc*' --json

compress plan resnet50.pth --method alds --max-params 50%"""


@takes(MODEL, DATA, CALL)
def plan(
    checkpoint: o.Checkpoint,
    method: o.Method = None,
    sparsity: o.Sparsity = None,
    max_loss_rise: o.MaxLossRise = None,
    max_params: o.MaxParams = None,
    max_flops: o.MaxFlops = None,
    max_size: o.MaxSize = None,
    objective: o.ObjectiveOption = None,
    error: o.ErrorOption = None,
    schemes: o.Schemes = None,
    max_groups: o.MaxGroups = None,
    linear_groups: o.LinearGroups = None,
    scope: o.ScopeOption = None,
    score: o.ScoreOption = None,
    floor: o.Floor = None,
    search: o.SearchOption = None,
    reference: o.Reference = None,
    rounds: o.Rounds = None,
    round_to: o.RoundTo = None,
    min_channels: o.MinChannels = None,
    ignore: o.Ignore = None,
    only: o.Only = None,
    seed: o.Seed = None,
    **shared: Any,
) -> int:
    """Dry run of prune and decompose: the same code path up to the decision, printed layer by layer."""
    flags = RunFlags.split(dict(locals()))
    out = Out(as_json=flags.as_json, quiet=flags.quiet, verbose=flags.verbose)
    resolved = resolve("plan", flags.checkpoint, flags.settings, flags.config_file)

    from compress_cli.pipeline import dry_run

    decided = dry_run(resolved, out)

    def render(console: Console) -> None:
        console.print(decided.explain(), markup=False, soft_wrap=True)

    out.result({"schema_version": 1, "ok": True, "command": "plan", "plan": decided.to_dict()}, render)
    return 0
