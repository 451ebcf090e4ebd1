"""`compress finetune`: train a compressed model on; its zeros and its structure stay."""

from __future__ import annotations

from compress_cli import options as o
from compress_cli.commands.common import RunFlags, run_verb

EPILOG = """Examples:

compress finetune runs/net-magnitude-0.9/model.pt --data DIR --epochs 30 --teacher original.pt

torchrun --nproc-per-node 8 -m compress_cli finetune model.pt --data DIR --epochs 90 -o run

compress finetune model.pt --task task.py --recipe ema=0.999 --recipe label_smoothing=0.1"""


def finetune(
    checkpoint: o.Checkpoint,
    data: o.DataDir = None,
    task: o.TaskFile = None,
    epochs: o.Epochs = None,
    lr: o.LearningRate = None,
    batch_size: o.BatchSize = None,
    weight_decay: o.WeightDecay = None,
    distill: o.Distill = None,
    teacher: o.Teacher = None,
    recipe: o.RecipeOption = None,
    compile: o.CompileOption = None,
    tensorboard: o.TensorBoard = None,
    preprocess: o.Preprocess = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.Resize = None,
    arch: o.Arch = None,
    arch_args: o.ArchArgs = None,
    input_shape: o.InputShape = None,
    input: o.InputOption = None,
    trust_pickle: o.TrustPickle = None,
    calib_samples: o.CalibSamples = None,
    weights: o.WeightsOption = None,
    safetensors: o.Safetensors = None,
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
    """Train a model on: zeros stay zero, removed channels and factors stay as they are.

    Then export to ONNX, check it against PyTorch, measure, and report.
    """
    flags = {**locals(), "method": "finetune"}
    return run_verb("finetune", RunFlags.split(flags))
