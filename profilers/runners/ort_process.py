"""Targets that run `ort_program` in Python: a fresh process here (`local`) and another machine through ssh."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profilers.runners.processes import run
from profilers.runners.result import RunnerFailed, RunnerResult, Settings, last_object, parse_line, tail

PROGRAM = Path(__file__).with_name("ort_program.py")


def task_text(models: Sequence[str], settings: Settings, outputs: str | None = None) -> str:
    """The program's one argument."""
    task: dict[str, Any] = {
        "models": list(models),
        "threads": settings.threads,
        "iterations": settings.iterations,
        "warmup": settings.warmup,
        "batch": settings.batch,
    }
    return json.dumps(task if outputs is None else {**task, "outputs": outputs})


def split_results(text: str, models: Sequence[Path]) -> tuple[RunnerResult, ...]:
    """The program's line as one result per model.

    Raises:
        RunnerFailed: the line is missing or incomplete.
    """
    found = last_object(text)
    if found is None or not isinstance(found.get("models"), list) or len(found["models"]) != len(models):
        raise RunnerFailed("it printed no JSON line with one entry per model", tail(text))
    shared = {key: value for key, value in found.items() if key != "models"}
    return tuple(
        parse_line(json.dumps({**shared, **row}), path.name) for path, row in zip(models, found["models"], strict=True)
    )


@dataclass(frozen=True, slots=True)
class LocalRunner:
    """ONNX Runtime in a fresh process on this machine: cold load time and peak memory of its own."""

    python: str = sys.executable
    name: str = "local"
    label: str = "measured on this host"

    def measure(self, models: Sequence[Path], settings: Settings) -> tuple[RunnerResult, ...]:
        """Run all models interleaved; see `Runner`."""
        command = [self.python, str(PROGRAM), task_text([str(path) for path in models], settings)]
        return split_results(run(command, timeout_s=settings.timeout_s, what="the measuring process"), models)


@dataclass(frozen=True, slots=True)
class SshRunner:
    """ONNX Runtime on another machine: copies models and program there, runs, removes them.

    Attributes:
        host: as ssh takes it (name of `~/.ssh/config`, or user@host).
        options: more ssh options, such as `-p 2222`.
        python: Python on that machine, with numpy and onnxruntime.
    """

    host: str
    options: tuple[str, ...] = ()
    python: str = "python3"
    label: str = "measured on a device"

    @property
    def name(self) -> str:
        """`ssh:HOST`."""
        return f"ssh:{self.host}"

    def measure(self, models: Sequence[Path], settings: Settings) -> tuple[RunnerResult, ...]:
        """Run all models interleaved; see `Runner`."""
        folder = self._ssh("mktemp -d", settings, what="making a folder there").strip()
        if not folder.startswith("/"):
            raise RunnerFailed(f"{self.host} made no temporary folder", folder)
        try:
            names = [f"{index}-{path.name}" for index, path in enumerate(models)]
            for local, remote in zip([PROGRAM, *models], ["program.py", *names], strict=True):
                command = f"cat > {shlex.quote(f'{folder}/{remote}')}"
                self._ssh(command, settings, stdin=local, what=f"copying {local.name}")
            task = shlex.quote(task_text(names, settings))
            command = f"cd {shlex.quote(folder)} && {shlex.quote(self.python)} program.py {task}"
            text = self._ssh(command, settings, what=f"the measurement on {self.host}")
            return split_results(text, models)
        finally:
            self._ssh(f"rm -rf {shlex.quote(folder)}", settings, what="cleaning up there")

    def _ssh(self, command: str, settings: Settings, *, stdin: Path | None = None, what: str) -> str:
        fixed = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]
        full = ["ssh", *fixed, *self.options, "--", self.host, command]
        return run(full, timeout_s=settings.timeout_s, stdin=stdin, what=f"ssh {self.host}: {what}")
