"""Tasks written down in YAML or TOML instead of Python: the data sets come from the Python file that `data` names.

data: leaves.py          # train_data(), test_data(), calib_data(), as in examples/two_task.py
tasks:
  stress: {output: stress, target: stress, loss: cross_entropy, metric: top1, max_drop: 2}
  mask:   {output: mask, target: mask, loss: cross_entropy, ignore_index: 255, metric: miou}
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from compress_cli.errors import InputError, UsageError
from compress_cli.tasks.losses import LOSSES
from compress_cli.tasks.metrics import METRICS
from compress_cli.tasks.task import Task

SUFFIXES = (".yaml", ".yml", ".toml")
_KEYS = ("output", "target", "loss", "metric", "max_drop", "weight", "ignore_index")
_FORM = "write `data: file.py` and under `tasks:` one entry a task, such as seg: {output: seg, target: mask, loss: l1}"


def read_declared(source: str) -> tuple[str, tuple[Task, ...]]:
    """(path of the Python file with the data, tasks) of a YAML or TOML file.

    Raises:
        InputError: no such file, not readable, or entries that are no tasks.
    """
    document = _document(Path(source))
    unknown = next((key for key in document if key not in ("data", "tasks")), None)
    if unknown is not None:
        raise InputError(f"--task {source}: unknown entry {unknown!r}", _FORM)
    data, listed = document.get("data"), document.get("tasks")
    if not isinstance(data, str):
        raise InputError(f"--task {source} names no data", _FORM)
    if not isinstance(listed, Mapping) or not listed:
        raise InputError(f"--task {source} names no tasks", _FORM)
    return str(Path(source).parent / data), tuple(_task(source, str(name), entry) for name, entry in listed.items())


def _document(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--task {path} cannot be read: {error}", "check the path") from error
    if path.suffix == ".toml":
        load: Callable[[str], Any] = tomllib.loads
        bad: tuple[type[Exception], ...] = (tomllib.TOMLDecodeError,)
    else:
        try:
            import yaml  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise InputError(
                f"--task {path} needs PyYAML, which is not installed", "pip install pyyaml, or write it as TOML"
            ) from error
        load, bad = yaml.safe_load, (yaml.YAMLError,)
    try:
        found = load(text)
    except bad as error:
        raise InputError(f"--task {path} is not valid: {' '.join(str(error).split())}", _FORM) from error
    if not isinstance(found, Mapping):
        raise InputError(f"--task {path} holds no entries", _FORM)
    return found


def _task(source: str, name: str, entry: Any) -> Task:
    if not isinstance(entry, Mapping):
        raise InputError(f"--task {source}: task {name} has no entries", _FORM)
    for key in entry:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, 1)
            known = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS)}"
            raise InputError(f"--task {source}: task {name} has an unknown entry {key!r}", known)
    try:
        loss = _made(LOSSES, "loss", entry.get("loss", "cross_entropy"), entry)
        metric = _made(METRICS, "metric", entry.get("metric", "top1"), entry)
    except UsageError as error:
        raise InputError(f"--task {source}: task {name}: {error.message}", error.fix) from error
    for key in ("max_drop", "weight"):
        if key in entry and (isinstance(entry[key], bool) or not isinstance(entry[key], (int, float))):
            raise InputError(f"--task {source}: task {name}: {key} is {entry[key]!r}, not a number", _FORM)
    return Task(
        name,
        entry.get("output"),
        entry.get("target"),
        loss,
        metric,
        entry.get("max_drop"),
        float(entry.get("weight", 1.0)),
    )


def _made(known: Mapping[str, Callable[[], Any]], what: str, name: Any, entry: Mapping[str, Any]) -> Any:
    """The named loss or metric, with the task's `ignore_index` where it has one."""
    if name not in known:
        raise UsageError(f"unknown {what} {name!r}", f"built-in: {', '.join(known)}")
    made = known[name]()
    if "ignore_index" not in entry:
        return made
    if any(field.name == "ignore_index" for field in fields(made)):
        return type(made)(ignore_index=int(entry["ignore_index"]))
    if what == "loss":
        raise UsageError(f"the loss {name} has no ignore_index", "drop it, or use cross_entropy")
    return made
