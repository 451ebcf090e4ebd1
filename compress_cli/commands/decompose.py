"""`compress decompose`: two thinner layers for one, ranks chosen for the whole network under one budget."""

from __future__ import annotations

from compress_cli import options as o
from compress_cli.commands.common import RunFlags, run_verb
from compress_cli.errors import UsageError

METHODS = ("alds", "svd", "svd-energy", "pca")

EPILOG = """Examples:

compress decompose model.pt --max-params 50% --calib images/

compress decompose resnet50.pth --max-latency 80% --max-groups 1 --calib images/

compress decompose net.th --arch nets.py:resnet56 --input-shape 3x32x32 --max-flops 50% --data cifar10 --epochs 3"""


def decompose(
    checkpoint: o.Checkpoint,
    method: o.DecomposeMethod = None,
    max_params: o.MaxParams = None,
    max_flops: o.MaxFlops = None,
    max_size: o.MaxSize = None,
    max_latency: o.MaxLatency = None,
    objective: o.ObjectiveOption = None,
    error: o.ErrorOption = None,
    schemes: o.Schemes = None,
    max_groups: o.MaxGroups = None,
    linear_groups: o.LinearGroups = None,
    ignore: o.Ignore = None,
    only: o.Only = None,
    arch: o.Arch = None,
    arch_args: o.ArchArgs = None,
    input_shape: o.InputShape = None,
    input: o.InputOption = None,
    trust_pickle: o.TrustPickle = None,
    data: o.DataDir = None,
    task: o.TaskFile = None,
    calib: o.Calib = None,
    calib_samples: o.CalibSamples = None,
    preprocess: o.Preprocess = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.Resize = None,
    epochs: o.Epochs = None,
    lr: o.LearningRate = None,
    batch_size: o.BatchSize = None,
    weight_decay: o.WeightDecay = None,
    distill: o.Distill = None,
    recipe: o.RecipeOption = None,
    compile: o.CompileOption = None,
    tensorboard: o.TensorBoard = None,
    weights: o.WeightsOption = None,
    safetensors: o.Safetensors = None,
    max_drop: o.MaxDrop = None,
    exit_zero: o.ExitZero = None,
    output: o.Output = None,
    device: o.Device = None,
    threads: o.Threads = None,
    seed: o.Seed = None,
    no_bench: o.NoBench = False,
    no_export: o.NoExport = False,
    resume: o.Resume = False,
    overwrite: o.Overwrite = False,
    config: o.ConfigFile = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> int:
    """Replace layers by two thinner ones so that the network meets a budget with the least largest error (ALDS).

    With --calib the decoders are fitted to the original's outputs on unlabelled images, which is worth more than
    any choice of ranks. Then fine-tune when there is data, export, check, measure, report.
    """
    flags = {**locals(), "method": method or "alds"}
    if flags["method"] not in METHODS:
        raise UsageError(f"--method {method!r} does not decompose", f"valid: {', '.join(METHODS)}")
    return run_verb("decompose", RunFlags.split(flags))
