"""A target that the user declares: a command template whose program prints one JSON line per model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from profilers.runners.processes import run
from profilers.runners.result import RunnerResult, Settings, merge, parse_line

PLACEHOLDERS = ("model", "threads", "iterations", "warmup", "input_shape", "batch")
ROUNDS = 4


def fill(template: Sequence[str], values: dict[str, str]) -> list[str]:
    """The command with `{name}` replaced inside each argument; arguments are never split or joined.

    Raises:
        ValueError: an unknown placeholder, or `{model}` is missing.

    Example:
        `["run", "--in={model}"]` with model `my net.onnx` gives `["run", "--in=my net.onnx"]`.
    """
    used = set(re.findall(r"\{(\w+)\}", " ".join(template)))
    unknown = sorted(used - set(PLACEHOLDERS))
    if unknown:
        raise ValueError(f"unknown placeholder {{{unknown[0]}}}; there are {', '.join(PLACEHOLDERS)}")
    if "model" not in used:
        raise ValueError("the command has no {model}")
    return [re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), argument) for argument in template]


@dataclass(frozen=True, slots=True)
class CommandRunner:
    """Runs a user's program once per model and round, models in turn (A B, B A, ...).

    Attributes:
        command: template; see `fill`.
        input_shape: what `{input_shape}` stands for, such as `1x3x224x224`.
    """

    name: str
    command: tuple[str, ...]
    label: str = "measured on a device"
    input_shape: str = ""
    rounds: int = ROUNDS

    def measure(self, models: Sequence[Path], settings: Settings) -> tuple[RunnerResult, ...]:
        """Run all models interleaved; see `Runner`."""
        rounds = self.rounds if len(models) > 1 else 1
        found: list[list[RunnerResult]] = [[] for _ in models]
        for number in range(rounds):
            order = range(len(models))
            for index in reversed(order) if number % 2 else order:
                found[index].append(self._once(models[index], settings, rounds))
        return tuple(merge(results) for results in found)

    def _once(self, model: Path, settings: Settings, rounds: int) -> RunnerResult:
        values = {
            "model": str(model),
            "threads": str(settings.threads),
            "iterations": str(max(1, settings.iterations // rounds)),
            "warmup": str(settings.warmup),
            "batch": str(settings.batch),
            "input_shape": self.input_shape,
        }
        text = run(fill(self.command, values), timeout_s=settings.timeout_s, what=f"the command of {self.name}")
        return parse_line(text, model.name)
