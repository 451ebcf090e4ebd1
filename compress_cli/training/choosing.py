"""The numbers of a recipe that nobody gave, each by rule and with its reason.

Rules: specs/magnitude.md section 3: a high restart learning rate that falls linearly to 0 (Le & Hua 2021; "BIMP", ICLR
2023), and no weight decay above 90 % sparsity. Transformers are trained by SGD with clipped gradients, as Dosovitskiy
et al. 2020 fine-tune them (arXiv 2010.11929); benchmarks/learning_rates.py found AdamW no better.

A short training of a network that is hardly damaged must begin lower, or it does harm: the adaptive linear learning
rate of Zimmer et al. ("How I Learned to Stop Worrying and Love Retraining", ICLR 2023, arXiv 2111.00843) grows with the
damage and with the length of training. Here the damage is the distance of the outputs from the original's, which
closed-form recovery shrinks too; the constants are from benchmarks/learning_rates.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress_cli.training.optimizers import step_plan
from compress_cli.training.recipe import Recipe
from compress_cli.training.words import parse_recipe
from exporters.outputs import evaluating

if TYPE_CHECKING:
    from compress_cli.config import RunConfig

DEFAULT_EPOCHS = 10
USUAL_BATCH = 128
DISTANCE_IMAGES = 256
USUAL = {"sgd": 0.02, "adamw": 0.0005}
SPARSE = {"sgd": 0.05, "adamw": 0.0005}
"""Peak rates of long training at the usual batch; the second for zeros, many of them or of known effect."""
DAMAGED = {"sgd": 0.07, "adamw": 0.002}
"""Peak rate when 10,000 images are seen, for outputs that are one spread away."""
LOWEST = 0.02
"""Of the long training's rate."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the rules look at.

    Attributes:
        images: training images.
        sparsity: share of zeros in the end; None where no zeros are kept.
        distance: squared distance of the outputs to the original's over their spread, before training; None where it
            is unknown, or nothing has been removed yet.
        layer_norms: whether the network has layer norms and no batch norms, as transformers do.
        teacher: whether the training distils.
    """

    images: int
    sparsity: float | None = None
    distance: float | None = None
    layer_norms: bool = False
    teacher: bool = False


def only_layer_norms(module: nn.Module) -> bool:
    """Whether a network has layer norms and no batch norms."""
    layers = list(module.modules())
    batch = any(isinstance(layer, _BatchNorm) for layer in layers)
    return not batch and any(isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) for layer in layers)


def distance_left(
    original: nn.Module, module: nn.Module, batches: Iterable[Sequence[Tensor]], device: torch.device
) -> float | None:
    """Squared distance of the outputs to the original's over their spread, the largest of all outputs.

    Args:
        batches: input tensors, gone through twice.
        device: of both networks.

    Returns:
        None where no outputs compare (a detector finds different numbers of boxes), or some are not finite.
    """
    from pruners.channels.measuring import distance

    def outputs(network: nn.Module) -> Iterator[Any]:
        return (network(*(item.to(device) for item in inputs)) for inputs in batches)

    with evaluating(original), evaluating(module):
        found = distance(outputs(original), outputs(module))
    return found if math.isfinite(found) else None


def choose_recipe(config: RunConfig, start: Start, known: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a run: flags where given, else the rules for what it starts with.

    Args:
        known: the recipe of the run that is resumed; its learning rate holds, whatever this machine measures.
    """
    given = parse_recipe(config.recipe)
    reasons = []
    epochs = DEFAULT_EPOCHS if config.epochs is None else config.epochs
    if config.epochs is None:
        reasons.append(f"{DEFAULT_EPOCHS} epochs: the default with training data")
    if start.layer_norms and "clip_norm" not in given:
        given["clip_norm"] = 1.0
        reasons.append("gradients clipped to norm 1: the network has layer norms and no batch norms")
    decay = config.weight_decay
    if decay is None:
        decay = 0.0 if start.sparsity is not None and start.sparsity > 0.9 else 1e-4
        reasons.append(f"weight decay {decay:g}: 0 above 90 % sparsity, else 1e-4")
    recipe = Recipe(
        epochs=epochs,
        lr=config.lr or 0.0,
        batch_size=config.batch_size or USUAL_BATCH,
        weight_decay=decay,
        distill=0.5 if start.teacher else 0.0,
        seed=config.seed,
    )
    recipe = dataclasses.replace(recipe, **given)
    if config.lr is None:
        rate, reason = _rate(recipe, start) if known is None else _known_rate(known)
        recipe = dataclasses.replace(recipe, lr=rate)
        reasons.insert(0, reason)
    long = start.sparsity is not None and start.sparsity >= 0.9
    if long and config.verb == "prune" and config.schedule == "one-shot":
        reasons.append(
            "the zeros are chosen once (--schedule one-shot); in a long run at 90 % zeros and more, --schedule st3 "
            "has the best published accuracy"
        )
    if start.teacher:
        reasons.append("half of the loss is the distance to the original's outputs at temperature 4: --distill")
    return dataclasses.replace(recipe, reasons=tuple(reasons))


def _rate(recipe: Recipe, start: Start) -> tuple[float, str]:
    """The peak learning rate and why.

    Example: 10,000 images seen in batches of 128, outputs 0.1 of their spread away: 0.007 with SGD.
    """
    batch, steps = step_plan(recipe, start.images)
    scale = _batch_scale(batch, recipe.optimizer)
    sparse = start.sparsity is not None and (start.sparsity >= 0.8 or start.distance is not None)
    long = _rounded(scale * (SPARSE if sparse else USUAL)[recipe.optimizer])
    short = math.inf
    if start.distance is not None:
        seen = batch * steps * recipe.epochs
        short = scale * DAMAGED[recipe.optimizer] * start.distance * math.sqrt(seen / 10_000)
    if short >= long:
        return long, f"learning rate {long:g}: a high restart that falls linearly to 0"
    rate = _rounded(max(short, LOWEST * long))
    return rate, (
        f"learning rate {rate:g}: the outputs are {start.distance:.2g} of their spread away from the original's and "
        f"{seen:,} images are seen; more damage or a longer training would begin higher, at most at {long:g}"
    )


def _batch_scale(batch: int, optimizer: str) -> float:
    """Of rates at the usual batch: the square root for Adam (Malladi et al. 2022) and for large batches (Krizhevsky
    2014, the careful rule), linear for small ones (Goyal et al. 2017), as benchmarks/learning_rates.py has it."""
    share = batch / USUAL_BATCH
    return share if optimizer == "sgd" and share < 1 else math.sqrt(share)


def _known_rate(recipe: Mapping[str, Any]) -> tuple[float, str]:
    reasons = (reason for reason in recipe["reasons"] if reason.startswith("learning rate"))
    return recipe["lr"], next(reasons, f"learning rate {recipe['lr']:g}: as the run began")


def _rounded(value: float) -> float:
    """Two significant digits: chosen once, and readable."""
    return float(f"{value:.2g}")
