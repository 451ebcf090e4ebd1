"""The numbers of a recipe that nobody gave, each by rule and with its reason.

Rules: specs/magnitude.md section 3: a high restart learning rate that falls linearly to 0 (Le & Hua 2021; "BIMP", ICLR
2023), and no weight decay above 90 % sparsity. Transformers are trained by SGD with clipped gradients, as Dosovitskiy
et al. 2020 fine-tune them (arXiv 2010.11929).

A short training of a network that is hardly damaged must begin lower, or it does harm: the adaptive linear learning
rate of Zimmer et al. ("How I Learned to Stop Worrying and Love Retraining", ICLR 2023, arXiv 2111.00843) grows with the
damage and with the length of training. Here the damage is the distance of the outputs from the original's, which
closed-form recovery shrinks too; the constants are from benchmarks/learning_rates.py. All rates go with the square root
of the batch (Krizhevsky 2014, arXiv 1404.5997; for Adam Malladi et al. 2022, arXiv 2205.10287).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
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
"""Highest rates at the usual batch. AdamW's is what large transformers are trained with (DeiT: 0.0005 at 512 images);
the small one of benchmarks/learning_rates.py takes 0.002, and is then up to 4 points better than with SGD."""
SPARSE = {"sgd": 0.05, "adamw": 0.0005}
"""The same for 80 % zeros and more, and for zeros whose damage was measured."""
DAMAGED = {"sgd": 0.07, "adamw": 0.002}
"""Rate that damage allows when 10,000 images are seen, for outputs that are one spread away."""
LOWEST = 0.02
"""Of the highest rate, for a network without damage."""


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
        tuned_before: whether somebody else compressed (and perhaps recovered) the network: `compress finetune`.
    """

    images: int
    sparsity: float | None = None
    distance: float | None = None
    layer_norms: bool = False
    teacher: bool = False
    tuned_before: bool = False


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
        batches: input tensors.
        device: of both networks.

    Returns:
        None where outputs do not compare (a detector finds another number of boxes), or some are not finite.
    """
    from pruners.channels.measuring import leaves
    from pruners.outputs import squares

    sums: list[list[Tensor]] = []
    counts: list[int] = []
    with evaluating(original), evaluating(module):
        for inputs in batches:
            here = [item.to(device) for item in inputs]
            theirs, ours = (
                [leaf for leaf in leaves(network(*here)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
                for network in (original, module)
            )
            if [leaf.shape for leaf in theirs] != [leaf.shape for leaf in ours]:
                return None
            parts = [squares(one, two) for one, two in zip(theirs, ours, strict=True) if one.dim()]
            sizes = [len(one) for one in theirs if one.dim()]
            if not sums:
                sums, counts = parts, sizes
                continue
            if [part[2].shape for part in parts] != [known[2].shape for known in sums]:
                return None
            sums = [[x + y for x, y in zip(*pair, strict=True)] for pair in zip(sums, parts, strict=True)]
            counts = [x + y for x, y in zip(counts, sizes, strict=True)]
    found = []
    for (moved, square, total), count in zip(sums, counts, strict=True):
        spread = float(square - total.square().sum() / count)
        if not math.isfinite(float(moved)) or not math.isfinite(spread):
            return None
        if spread > 1e-9 * float(square):  # else it is the same for all images
            found.append(float(moved) / spread)
    return max(found, default=None)


def choose_recipe(config: RunConfig, start: Start, known: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a run: flags where given, else the rules for what it starts with.

    Args:
        known: the recipe of the run that is resumed; what rules chose then holds, whatever is measured now.
    """
    given = parse_recipe(config.recipe)
    reasons = []
    epochs = DEFAULT_EPOCHS if config.epochs is None else config.epochs
    if config.epochs is None:
        reasons.append(f"{DEFAULT_EPOCHS} epochs: the default with training data")
    if known is not None:
        given = {"clip_norm": known["clip_norm"], **given}
    elif start.layer_norms and "clip_norm" not in given:
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
    many = start.sparsity is not None and start.sparsity >= 0.9
    if many and config.verb == "prune" and config.schedule == "one-shot":
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
    scale = math.sqrt(batch / USUAL_BATCH)
    zeros = start.sparsity is not None and (start.sparsity >= 0.8 or start.distance is not None)
    highest = _rounded(scale * (SPARSE if zeros else USUAL)[recipe.optimizer])
    curve = {"constant": "stays", "one-cycle": "rises and falls to 0"}.get(recipe.curve, f"falls to 0 ({recipe.curve})")
    if start.distance is None:
        unknown = "; how much is lost is not known, after a recovery begin lower" if start.tuned_before else ""
        return highest, f"learning rate {highest:g} at {batch} images a step: a high restart that {curve}{unknown}"
    seen = batch * steps * recipe.epochs
    wanted = scale * DAMAGED[recipe.optimizer] * start.distance * math.sqrt(seen / 10_000)
    if wanted >= highest:
        return highest, f"learning rate {highest:g} at {batch} images a step: a high restart that {curve}"
    rate = _rounded(max(wanted, LOWEST * highest))
    return rate, (
        f"learning rate {rate:g} at {batch} images a step: the outputs' squared distance to the original's is "
        f"{start.distance:.2g} of their variance and {seen:,} images are seen; more damage or a longer training would "
        f"begin higher, at most at {highest:g}"
    )


def _known_rate(recipe: Mapping[str, Any]) -> tuple[float, str]:
    reasons = (reason for reason in recipe["reasons"] if reason.startswith("learning rate"))
    return recipe["lr"], next(reasons, f"learning rate {recipe['lr']:g}: as the run began")


def _rounded(value: float) -> float:
    """Two significant digits: chosen once, and readable."""
    return float(f"{value:.2g}")
