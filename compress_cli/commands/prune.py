"""`compress prune`: checkpoint in, smaller verified ONNX model and report out."""

from __future__ import annotations

from compress_cli import options as o
from compress_cli.commands.common import RunFlags, run_verb

EPILOG = """Examples:

compress prune resnet50.pth --sparsity 0.9

compress prune net.th --arch nets.py:resnet56 --input-shape 3x32x32 --sparsity 0.8 --data cifar10 --epochs 0

compress prune model.safetensors --sparsity 80% --ignore 'head*' --no-bench --json

compress prune net.pt --method pagcp --task task.py --max-flops 60% --max-loss-rise seg=3%,depth=5%"""


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
    round_to: o.RoundTo = None,
    min_channels: o.MinChannels = None,
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
    max_loss_rise: o.MaxLossRise = None,
    max_params: o.MaxParams = None,
    max_flops: o.MaxFlops = None,
    max_size: o.MaxSize = None,
    max_drop: o.MaxDrop = None,
    max_latency: o.MaxLatency = None,
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
    """Zero the smallest weights of the whole network, exactly as many as asked.

    Then fine-tune when there is data, export to ONNX, check it against PyTorch, measure, and report.
    """
    flags = dict(locals())
    return run_verb("prune", RunFlags.split(flags))
