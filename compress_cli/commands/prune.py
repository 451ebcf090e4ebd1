"""`compress prune`: checkpoint in, smaller verified ONNX model and report out."""

from __future__ import annotations

from typing import Any

from compress_cli import options as o
from compress_cli.commands.common import RunFlags, run_verb
from compress_cli.commands.groups import CALL, DATA, FOLDER, GATES, MODEL, OUTPUT, TRAINING, takes

EPILOG = """Examples:

compress prune resnet50.pth --sparsity 0.9

compress prune net.th --arch nets.py:resnet56 --input-shape 3x32x32 --sparsity 0.8 --data cifar10 --epochs 0

compress prune model.onnx --sparsity 0.9 --weights packed-cb4 -o small.onnx

compress prune model.safetensors --sparsity 80% --ignore 'head*' --no-bench --json

compress prune net.pt --method pagcp --task task.py --max-flops 60% --max-loss-rise seg=3%,depth=5%"""


@takes(MODEL, DATA, TRAINING, GATES, OUTPUT, FOLDER, CALL)
def prune(
    checkpoint: o.Checkpoint,
    method: o.Method = None,
    sparsity: o.Sparsity = None,
    scope: o.ScopeOption = None,
    score: o.ScoreOption = None,
    floor: o.Floor = None,
    schedule: o.ScheduleOption = None,
    search: o.SearchOption = None,
    reference: o.Reference = None,
    rounds: o.Rounds = None,
    steps: o.StepsOption = None,
    round_to: o.RoundTo = None,
    min_channels: o.MinChannels = None,
    ignore: o.Ignore = None,
    only: o.Only = None,
    max_loss_rise: o.MaxLossRise = None,
    **shared: Any,
) -> int:
    """Zero the smallest weights of the whole network, exactly as many as asked.

    Then fine-tune when there is data, export to ONNX, check it against PyTorch, measure, and report.
    """
    arguments = dict(locals())
    count = arguments.pop("steps")
    flags = RunFlags.split(arguments)
    if count is not None:
        from compress_cli.stepping import prune_in_steps

        return prune_in_steps(flags, count)
    from compress_cli.onnx_pruning import is_onnx, prune_file

    return prune_file(flags) if is_onnx(flags.checkpoint) else run_verb("prune", flags)
