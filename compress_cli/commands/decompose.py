"""`compress decompose`: two thinner layers for one, ranks chosen for the whole network under one budget."""

from __future__ import annotations

from typing import Any

from compress_cli import options as o
from compress_cli.commands.common import RunFlags, run_verb
from compress_cli.commands.groups import CALL, DATA, FOLDER, GATES, MODEL, OUTPUT, TRAINING, takes
from compress_cli.errors import UsageError

METHODS = ("alds", "svd", "svd-energy", "pca")

EPILOG = """Examples:

compress decompose model.pt --max-params 50% --calib images/

compress decompose resnet50.pth --max-latency 80% --max-groups 1 --calib images/

compress decompose net.th --arch nets.py:resnet56 --input-shape 3x32x32 --max-flops 50% --data cifar10 --epochs 3"""


@takes(MODEL, DATA, TRAINING, GATES, OUTPUT, FOLDER, CALL)
def decompose(
    checkpoint: o.Checkpoint,
    method: o.DecomposeMethod = None,
    objective: o.ObjectiveOption = None,
    error: o.ErrorOption = None,
    schemes: o.Schemes = None,
    max_groups: o.MaxGroups = None,
    linear_groups: o.LinearGroups = None,
    ignore: o.Ignore = None,
    only: o.Only = None,
    **shared: Any,
) -> int:
    """Replace layers by two thinner ones so that the network meets a budget with the least largest error (ALDS).

    With --calib the decoders are fitted to the original's outputs on unlabelled images, which is worth more than
    any choice of ranks. Then fine-tune when there is data, export, check, measure, report.
    """
    flags = {**locals(), "method": method or "alds"}
    if flags["method"] not in METHODS:
        raise UsageError(f"--method {method!r} does not decompose", f"valid: {', '.join(METHODS)}")
    return run_verb("decompose", RunFlags.split(flags))
