"""Option types that several verbs share; one definition of each help text. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_cli.completion import Completer, layers, one_of
from compress_cli.methods import METHODS
from compress_cli.weight_forms import WEIGHTS

MODEL = "Model and inputs"
SELECT = "What is pruned"
DATA = "Data and fine-tuning"
OUTPUT = "Output and measurements"
GATES = "Budgets and gates (exit code 1 when missed)"


def option(
    *names: str,
    help: str,
    panel: str | None = None,
    metavar: str | None = None,
    complete: Completer | None = None,
) -> typer.models.OptionInfo:
    """A Typer option with the house conventions; `complete` offers words to the shell."""
    info: typer.models.OptionInfo = typer.Option(
        *names, help=help, rich_help_panel=panel, metavar=metavar, show_default=False, autocompletion=complete
    )
    return info


Checkpoint = Annotated[
    str,
    typer.Argument(help="Checkpoint: .pt, .pth, .th, .safetensors, or one compress wrote.", show_default=False),
]
Output = Annotated[
    str | None,
    option("-o", "--output", help="Run folder (default: runs/NAME-METHOD-SPARSITY).", panel=OUTPUT, metavar="DIR"),
]
Sparsity = Annotated[
    str | None, option("--sparsity", help="Share of ranked weights to zero: 0.9 or 90%.", panel=SELECT)
]
ScopeOption = Annotated[
    str | None,
    option(
        "--scope",
        help="global (one ranking), layer (same share everywhere); channels also isomorphic. Default global.",
        panel=SELECT,
    ),
]
ScoreOption = Annotated[
    str | None,
    option(
        "--score",
        help="magnitude, lamp, erk or recovery; channels: magnitude, l1, bn, lamp, fpgm, taylor, fisher, measured or "
        "recovery; pagcp: fisher, l1 or measured. measured: magnitude (pagcp: fisher) times what the outputs show when "
        "half of a group is off. recovery (with --calib): what removal costs after the rest made up for it. Default "
        "magnitude; channels with --calib: recovery; pagcp: fisher.",
        panel=SELECT,
    ),
]
Floor = Annotated[
    str | None,
    option(
        "--floor",
        help="Weights every tensor keeps: a count or a percentage of all ranked. Default 0.02%.",
        panel=SELECT,
    ),
]
ScheduleOption = Annotated[
    str | None,
    option(
        "--schedule",
        help="one-shot, or prune while training: gradual (cubic ramp), st3 or acdc. Default one-shot.",
        panel=SELECT,
    ),
]
Ignore = Annotated[
    list[str] | None,
    option(
        "--ignore",
        help="Layers or tensors left alone (glob, repeatable).",
        panel=SELECT,
        metavar="PATTERN",
        complete=layers,
    ),
]
Only = Annotated[
    list[str] | None,
    option(
        "--only",
        help="Consider only these (glob, repeatable).",
        panel=SELECT,
        metavar="PATTERN",
        complete=layers,
    ),
]
Arch = Annotated[
    str | None,
    option(
        "--arch",
        help="torchvision:NAME, timm:NAME, net.py:factory or pkg.mod:factory. Recognised if omitted.",
        panel=MODEL,
    ),
]
ArchArgs = Annotated[
    list[str] | None,
    option("--arch-args", help="k=v passed to the factory (repeatable).", panel=MODEL, metavar="K=V"),
]
InputShape = Annotated[
    str | None, option("--input-shape", help="Shape of one input image, CxHxW.", panel=MODEL, metavar="CxHxW")
]
InputOption = Annotated[
    list[str] | None,
    option("--input", help="NAME=SHAPE:dtype for several inputs (repeatable).", panel=MODEL, metavar="SPEC"),
]
TrustPickle = Annotated[
    bool | None,
    option(
        "--trust-pickle",
        help="Allow running code pickled in the file. Only for files you trust.",
        panel=MODEL,
    ),
]
DataDir = Annotated[
    str | None,
    option("--data", help="ImageFolder tree with train/ and test/ (or val/).", panel=DATA, metavar="DIR"),
]
TaskFile = Annotated[
    str | None,
    option(
        "--task",
        help="Task file: data, losses, metrics in Python, or tasks in YAML or TOML.",
        panel=DATA,
        metavar="FILE",
    ),
]
Calib = Annotated[
    str | None,
    option(
        "--calib",
        help="Folder of unlabelled images: recovery by least squares, and choices that need images (see --score).",
        panel=DATA,
        metavar="DIR",
    ),
]
CalibSamples = Annotated[
    int | None,
    option(
        "--calib-samples",
        help="Images of --calib or the training data to work with; up to 1000 others check the result. Default 1024.",
        panel=DATA,
    ),
]
Preprocess = Annotated[
    str | None,
    option(
        "--preprocess",
        help="imagenet, cifar10, none or file.py:transform. Default: the model's own.",
        panel=DATA,
    ),
]
Mean = Annotated[str | None, option("--mean", help="Channel means, for example .485,.456,.406.", panel=DATA)]
Std = Annotated[str | None, option("--std", help="Channel standard deviations.", panel=DATA)]
Resize = Annotated[int | None, option("--resize", help="Shorter image side in pixels before the crop.", panel=DATA)]
Epochs = Annotated[
    int | None,
    option("--epochs", help="Fine-tuning epochs. Default 10 with training data; 0 never trains.", panel=DATA),
]
LearningRate = Annotated[
    float | None,
    option("--lr", help="Peak learning rate. Default by what is lost and how long it trains, printed.", panel=DATA),
]
BatchSize = Annotated[int | None, option("--batch-size", help="Images a step. Default 128.", panel=DATA)]
WeightDecay = Annotated[float | None, option("--weight-decay", help="Default 1e-4; 0 above 90 % sparsity.", panel=DATA)]
Distill = Annotated[
    bool | None, option("--distill", help="Train towards the original model's outputs too.", panel=DATA)
]
Teacher = Annotated[
    str | None,
    option("--teacher", help="Checkpoint to learn from; implies --distill.", panel=DATA, metavar="FILE"),
]
RecipeOption = Annotated[
    list[str] | None,
    option(
        "--recipe",
        help="More of the training recipe, repeatable: ema=0.999, curve=cosine, mixup=0.2, precision=fp16, ...",
        panel=DATA,
        metavar="NAME=VALUE",
    ),
]
CompileOption = Annotated[
    bool | None, option("--compile", help="Train through torch.compile, where there is a compiler.", panel=DATA)
]
TensorBoard = Annotated[
    str | None,
    option("--tensorboard", help="Write training curves there (package tensorboard).", panel=DATA, metavar="DIR"),
]
WeightsOption = Annotated[
    str | None,
    option(
        "--weights",
        help="Weights in the ONNX file: auto (packed when smaller), dense, packed, packed-fp16, packed-q2..q8, "
        "packed-cb2..cb8, packed-cb (bits by layer) or int8.",
        panel=OUTPUT,
        complete=one_of(WEIGHTS),
    ),
]
Safetensors = Annotated[bool | None, option("--safetensors", help="Also write model.safetensors.", panel=OUTPUT)]
Method = Annotated[
    str | None,
    option(
        "--method",
        help=f"{', '.join(METHODS)}. Default magnitude.",
        panel=SELECT,
        complete=one_of(METHODS),
    ),
]
DecomposeMethod = Annotated[
    str | None,
    option(
        "--method",
        help="alds, or to compare: svd, svd-energy, pca (needs --calib). Default alds.",
        panel=SELECT,
        complete=one_of(("alds", "svd", "svd-energy", "pca")),
    ),
]
ObjectiveOption = Annotated[
    str | None,
    option("--objective", help="max (least largest error) or sum (least sum of squares). Default max.", panel=SELECT),
]
ErrorOption = Annotated[
    str | None,
    option("--error", help="score (the paper's), fro, or output (measured on --calib). Default score.", panel=SELECT),
]
Schemes = Annotated[
    str | None,
    option("--schemes", help="Folding schemes to choose from: 0, 0,3 or all. Default 0.", panel=SELECT),
]
MaxGroups = Annotated[
    int | None,
    option(
        "--max-groups",
        help="Most slices a layer. Groups save bytes, not time. Default: 1 with --max-latency, else no limit.",
        panel=SELECT,
    ),
]
LinearGroups = Annotated[
    bool | None,
    option(
        "--linear-groups/--no-linear-groups",
        help="Slice linear layers too (a reshape and a grouped 1x1)."
        " Default: where they hold a fifth of the weights, unless --max-latency.",
        panel=SELECT,
    ),
]
SearchOption = Annotated[
    str | None,
    option(
        "--search",
        help="pagcp: path (one global ranking) or sweep (the published walk). Default path.",
        panel=SELECT,
    ),
]
Reference = Annotated[
    bool | None,
    option("--reference", help="pagcp: the published sweep, scores and batch norms as in the paper.", panel=SELECT),
]
Rounds = Annotated[
    int | None,
    option("--rounds", help="pagcp: most sweeps. Default 1, with a cost limit 20.", panel=SELECT),
]
StepsOption = Annotated[
    int | None,
    option("--steps", help="channels: cut in so many steps, --epochs of training after each.", panel=SELECT),
]
RoundTo = Annotated[
    int | None, option("--round-to", help="Kept channels are a multiple of this. Default 1.", panel=SELECT)
]
MinChannels = Annotated[
    str | None,
    option("--min-channels", help="Channels every group keeps: a count or a percentage. Default 5%.", panel=SELECT),
]
MaxLossRise = Annotated[
    str | None,
    option(
        "--max-loss-rise",
        help="pagcp: how much a task's loss may rise before training: 3%, or seg=3%,depth=5%.",
        panel=GATES,
    ),
]
MaxParams = Annotated[
    str | None, option("--max-params", help="Limit on stored parameters: 5M or 50% of the original.", panel=GATES)
]
MaxFlops = Annotated[
    str | None,
    option("--max-flops", help="Limit on compute: 1.5GMACs, 3GFLOPs or 50% of the original.", panel=GATES),
]
MaxSize = Annotated[
    str | None, option("--max-size", help="Gate on the ONNX file: 8MB or 25% of the original.", panel=GATES)
]
MaxDrop = Annotated[
    str | None, option("--max-drop", help="Gate on the metric's fall, in its points: 0.5.", panel=GATES)
]
MaxLatency = Annotated[
    str | None,
    option(
        "--max-latency",
        help="Limit on p50 latency: 20ms, 110% of the original, or predicted: mobile:DEVICE=60%.",
        panel=GATES,
    ),
]
ExitZero = Annotated[bool | None, option("--exit-zero", help="Report failed gates but exit 0.", panel=GATES)]
Device = Annotated[str | None, option("--device", help="auto, cpu or cuda. Default auto.", panel=OUTPUT)]
Threads = Annotated[
    int | None, option("--threads", help="ONNX Runtime threads when measuring. Default 1.", panel=OUTPUT)
]
Seed = Annotated[int | None, option("--seed", help="Random seed. Default 0.", panel=OUTPUT)]
NoBench = Annotated[bool, option("--no-bench", help="Skip the latency measurement.", panel=OUTPUT)]
NoExport = Annotated[bool, option("--no-export", help="Skip the ONNX export (and latency).", panel=OUTPUT)]
Resume = Annotated[bool, option("--resume", help="Continue an interrupted run in its folder.", panel=OUTPUT)]
Overwrite = Annotated[bool, option("--overwrite", help="Replace a run that is already in the folder.", panel=OUTPUT)]
ConfigFile = Annotated[
    Path | None, option("--config", help="TOML file with defaults (default ./compress.toml).", panel=OUTPUT)
]
Json = Annotated[bool, option("--json", help="Print one JSON document on stdout.", panel=OUTPUT)]
Quiet = Annotated[bool, option("-q", "--quiet", help="No progress.", panel=OUTPUT)]
Verbose = Annotated[bool, option("-v", "--verbose", help="More detail.", panel=OUTPUT)]
