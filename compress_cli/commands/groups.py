"""Groups of flags that several verbs share, and the decorator that gives a command some of them.

A command declares its own flags; `takes(MODEL, DATA, ...)` adds the groups' to its signature, where Typer finds them,
and the command gets their values as further keywords.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from compress_cli import options as o

Group = Mapping[str, tuple[Any, Any]]
"""flag name with underscores -> (annotated type, default)"""
Command = TypeVar("Command", bound=Callable[..., int])


def _unset(**types: Any) -> Group:
    return {name: (kind, None) for name, kind in types.items()}


MODEL: Group = _unset(
    arch=o.Arch,
    arch_args=o.ArchArgs,
    input_shape=o.InputShape,
    input=o.InputOption,
    trust_pickle=o.TrustPickle,
)
IMAGES: Group = _unset(preprocess=o.Preprocess, mean=o.Mean, std=o.Std, resize=o.Resize)
CALIB: Group = {**_unset(calib=o.Calib, calib_samples=o.CalibSamples), **IMAGES}
DATA: Group = {**_unset(data=o.DataDir, task=o.TaskFile), **CALIB}
TRAINING: Group = _unset(
    epochs=o.Epochs,
    lr=o.LearningRate,
    batch_size=o.BatchSize,
    weight_decay=o.WeightDecay,
    distill=o.Distill,
    recipe=o.RecipeOption,
    compile=o.CompileOption,
    tensorboard=o.TensorBoard,
)
GATES: Group = _unset(
    max_params=o.MaxParams,
    max_flops=o.MaxFlops,
    max_size=o.MaxSize,
    max_drop=o.MaxDrop,
    max_latency=o.MaxLatency,
    exit_zero=o.ExitZero,
)
OUTPUT: Group = {
    **_unset(weights=o.WeightsOption, safetensors=o.Safetensors, output=o.Output),
    **_unset(device=o.Device, threads=o.Threads, seed=o.Seed),
    "no_bench": (o.NoBench, False),
    "no_export": (o.NoExport, False),
}
CALL: Group = {
    "config": (o.ConfigFile, None),
    "json": (o.Json, False),
    "quiet": (o.Quiet, False),
    "verbose": (o.Verbose, False),
}
FOLDER: Group = {"resume": (o.Resume, False), "overwrite": (o.Overwrite, False)}


def takes(*groups: Group) -> Callable[[Command], Command]:
    """Add the flags of some groups to a command that has a `**flags` for them; its own flags win."""

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        parameters = [item for item in own.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        known = {item.name for item in parameters}
        added: dict[str, tuple[Any, Any]] = {}
        for group in groups:
            added |= {name: flag for name, flag in group.items() if name not in known}
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in added.items()
        ]
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ |= {name: kind for name, (kind, _) in added.items()}
        return command

    return decorate


__all__ = ["CALIB", "CALL", "DATA", "FOLDER", "GATES", "IMAGES", "MODEL", "OUTPUT", "TRAINING", "takes"]
