"""`Recipe`: all numbers of a training run. `choosing.py` chooses those that nobody gave."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

Curve = Literal["linear", "cosine", "constant", "one-cycle"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
_SAID_OTHERWISE = {"epochs", "lr", "batch_size", "optimizer", "curve", "weight_decay", "reasons"} | {
    "seed", "checkpoint_minutes", "checkpoint_steps"
}  # fmt: skip
"""What `Recipe.words` need not list."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained on.

    Attributes:
        batch_size: images an optimiser step, over all processes and accumulated parts together.
        lr: the peak; `curve` lowers it to 0 after `warmup` (a share of all steps) of linear rise.
        clip_norm: gradients are scaled down to this norm; None never.
        accumulate: a step's images go through the network in so many parts.
        ema: decay a step of the averaged weights that are kept in the end; None keeps the last ones.
        distill: weight of the teacher's outputs in the loss, 0 to 1; `temperature` softens both outputs.
        features: weight of the teacher's features, added to the loss.
        orthogonal: weight of the angles between rows of decomposed layers' encoders, added to the loss.
        mixup, cutmix: their alpha; 0 without.
        randaugment: torchvision's RandAugment on training images.
        precision: of products; `auto` is float32 on a CPU, on a GPU the 16-bit type that it has units for.
        checkpoint_minutes: time between saved states inside an epoch (one is saved after each epoch anyway).
        checkpoint_steps: the same in steps; 0: by time alone.
        reasons: why the defaults are what they are, for the report.
    """

    epochs: int
    lr: float
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    curve: Curve = "linear"
    warmup: float = 0.05
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float | None = None
    distill: float = 0.0
    temperature: float = 4.0
    features: float = 0.0
    orthogonal: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    randaugment: bool = False
    precision: Precision = "auto"
    checkpoint_minutes: float = 5.0
    checkpoint_steps: int = 0
    seed: int = 0
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; a run resumes only with an equal one, reasons aside."""
        return {**dataclasses.asdict(self), "reasons": list(self.reasons)}

    def words(self) -> str:
        """The recipe in a line for people.

        Example: `Recipe(10, 0.02).words()` begins "10 epochs of 128 images a step, SGD at learning rate 0.02 (linear)".
        """
        optimizer = "SGD" if self.optimizer == "sgd" else "AdamW"
        parts = [
            f"{self.epochs} epoch{'' if self.epochs == 1 else 's'} of {self.batch_size} images a step",
            f"{optimizer} at learning rate {self.lr:g} ({self.curve})",
            f"weight decay {self.weight_decay:g}",
        ]
        usual = Recipe(self.epochs, self.lr)
        names = [item.name for item in dataclasses.fields(self) if item.name not in _SAID_OTHERWISE]
        changed = [name for name in names if getattr(self, name) != getattr(usual, name)]
        return ", ".join(parts + [f"{name} {_short(getattr(self, name))}" for name in changed])

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of an optimiser step, counted from 0, of `steps`; a pure function, so nothing is to be saved.

        Example: `Recipe(1, 0.1, warmup=0.0).rate_at(50, 100)` is 0.05 on the linear curve.
        """
        rise = 0.3 if self.curve == "one-cycle" else self.warmup
        begin = math.floor(rise * steps)
        if step < begin:
            return self.lr * (step + 1) / (begin + 1)
        share = (step - begin) / max(1, steps - begin)
        if self.curve == "constant":
            return self.lr
        if self.curve == "linear":
            return self.lr * (1 - share)
        return self.lr * (1 + math.cos(math.pi * share)) / 2


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
