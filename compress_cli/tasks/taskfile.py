"""Task files: a Python module with `tasks()`, `train_data()`, `test_data()` and, if there is one, `calib_data()`.

The tasks may also stand in a YAML or TOML file that names the module with the data (`declared`).
See `examples/two_task.py`. The file is the user's own code and runs as such; each call is made once, when needed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from compress_cli.checkpoint import factories
from compress_cli.errors import CompressError, InputError
from compress_cli.tasks.declared import SUFFIXES, read_declared
from compress_cli.tasks.task import Task

_ASK = "see examples/two_task.py for the functions of a task file"


@dataclass(frozen=True, slots=True)
class TaskFile:
    """What a task file defines; data sets are None where it has no such function."""

    source: str
    tasks: tuple[Task, ...]
    train: Any | None
    test: Any | None
    calib: Any | None


def import_user_module(source: str, flag: str) -> ModuleType:
    """Import `path/to/file.py` or `package.module`, naming `flag` in every failure.

    Raises:
        InputError: not found, or an error while it is imported.
    """
    with _user_output():
        try:
            return factories.import_file(source, None) if source.endswith(".py") else factories.import_module(source)
        except InputError as error:
            fix = error.fix.replace("path/to/net.py:factory", "path/to/file.py")
            raise InputError(error.message.replace("--arch", flag), fix) from error


def read_task_file(source: str) -> TaskFile:
    """Import a task file and call its functions.

    Raises:
        InputError: not found, incomplete, failing, or returning something else than it should.
    """
    declared: tuple[Task, ...] | None = None
    asked = source
    if source.endswith(SUFFIXES):
        source, declared = read_declared(source)
    module = import_user_module(source, "--task")
    if not any(hasattr(module, name) for name in ("train_data", "test_data", "calib_data")):
        raise InputError(f"--task {source} defines no data: train_data, test_data or calib_data", _ASK)
    tasks = declared if declared is not None else _call(module, "tasks", source)
    tasks = (tasks,) if isinstance(tasks, Task) else tuple(tasks or ())
    if not tasks or not all(isinstance(task, Task) for task in tasks):
        raise InputError(f"--task {source}: tasks() must return a tuple of compress_cli.tasks.Task", _ASK)
    names = [task.name for task in tasks]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise InputError(f"--task {source}: two tasks have the name {double!r}", "give each task its own name")
    train, test, calib = (_data(module, name, source) for name in ("train_data", "test_data", "calib_data"))
    return TaskFile(asked, tasks, train, test, calib)


def _data(module: ModuleType, name: str, source: str) -> Any | None:
    if not hasattr(module, name):
        return None
    data = _call(module, name, source)
    if data is None:
        return None
    if not isinstance(data, Sized) or not hasattr(data, "__getitem__"):
        raise InputError(
            f"--task {source}: {name}() returned a {type(data).__name__}, not a data set with len() and [index]",
            "return a map-style torch Dataset of (input, target), not a loader or an iterator",
        )
    if len(data) == 0:
        raise InputError(f"--task {source}: {name}() returned an empty data set", "check the paths in the task file")
    return data


def _call(module: ModuleType, name: str, source: str) -> Any:
    function: Callable[[], Any] | None = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"--task {source} defines no function {name}()", _ASK)
    with _user_output():
        try:
            return function()
        except CompressError:
            raise
        except (Exception, SystemExit) as error:
            place = _place(error)
            raise InputError(
                f"--task {source}: {name}() raised {type(error).__name__}: {error}{place}", "correct the task file"
            ) from error


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})" if trace is not None else ""


def _user_output() -> contextlib.redirect_stdout[Any]:
    """What a user's file prints goes to stderr: stdout is for results."""
    return contextlib.redirect_stdout(sys.stderr)
