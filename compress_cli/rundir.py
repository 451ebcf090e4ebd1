"""The run folder: one run at a time, every file whole or absent, and enough state to resume.

`state.json` records which stages are done and what they measured; the other files are listed in design.md section 4.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from compress_cli.atomic import atomic_path
from compress_cli.errors import InputError, UsageError

CONTENT = (
    "config.json",
    "plan.json",
    "model.pt",
    "model.safetensors",
    "model.onnx",
    "report.json",
    "report.html",
    "state.json",
)
BEFORE_PLAN = ("config.json", "state.json")
"""Written before it is known whether there can be a plan."""


class RunFolder:
    """An exclusive hold on a folder that a run writes into; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self._log: IO[str] | None = None
        self._replaced: list[Path] = []
        self._pending: dict[str, Mapping[str, Any]] = {}
        self._log_start = 0
        self.wrote = False
        self.state: dict[str, Any] = {"stages": {}}

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def log(self) -> IO[str] | None:
        """The open `log.txt`."""
        return self._log

    @property
    def keeps_old(self) -> bool:
        """Whether the run that `--overwrite` is to replace is still whole."""
        return bool(self._replaced)

    def file(self, name: str) -> Path:
        """The path of one file of the run."""
        return self.path / name

    def open(self, *, resume: bool, overwrite: bool) -> RunFolder:
        """Create the folder, take its lock, and check what is in it.

        Raises:
            InputError: the folder cannot be created or written.
            UsageError: another run holds it, or it holds a run and neither resume nor overwrite was asked.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a")  # noqa: SIM115  held until close()
        except OSError as error:
            raise InputError(
                f"cannot write into the output folder {self.path}: {error.strerror}",
                "choose another folder with -o DIR",
            ) from error
        self._take_lock()
        self._check_content(resume=resume, overwrite=overwrite)
        log, keeps = self.path / "log.txt", resume or bool(self._replaced)
        self._log_start = log.stat().st_size if keeps and log.exists() else 0
        self._log = open(log, "a" if keeps else "w", encoding="utf-8")  # noqa: SIM115
        return self

    def _take_lock(self) -> None:
        if self._lock is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            self._lock = None
            raise UsageError(
                f"another compress run is writing into {self.path}",
                "wait for it, or choose another folder with -o DIR",
            ) from error

    def _check_content(self, *, resume: bool, overwrite: bool) -> None:
        held = [name for name in CONTENT if self.file(name).exists()]
        if resume:
            self.state = self._read_state()
            return
        if held and not overwrite:
            self.close()
            raise UsageError(
                f"{self.path} already holds a run ({', '.join(held[:4])})",
                "continue it with --resume, replace it with --overwrite, or choose another folder with -o DIR",
            )
        self._replaced = [*(self.file(name) for name in held), *self.path.glob("checkpoints/*")]

    def _discard_replaced(self) -> None:
        """Remove the run that `--overwrite` replaces, and its part of the log."""
        for path in self._replaced:
            path.unlink(missing_ok=True)
        if self._replaced and self._log is not None:
            self._log.flush()
            own = (self.path / "log.txt").read_bytes()[self._log_start :].decode("utf-8", "replace")
            self._log.truncate(0)
            self._log.write(own)
        self._replaced = []

    def _read_state(self) -> dict[str, Any]:
        path = self.file("state.json")
        if not path.exists():
            return {"stages": {}}
        try:
            state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}", "start again with --overwrite") from error
        return state

    def write_json(self, name: str, document: Mapping[str, Any]) -> Path:
        """Write one JSON file atomically; NaN and infinity become null.

        A run that `--overwrite` is to replace stays whole until the new one has a plan: what is written before waits.
        """
        path = self.file(name)
        if self._replaced and name in BEFORE_PLAN:
            self._pending[name] = document
            return path
        self._discard_replaced()
        for earlier, waiting in self._pending.items():
            self._write(earlier, waiting)
        self._pending = {}
        self._write(name, document)
        return path

    def _write(self, name: str, document: Mapping[str, Any]) -> None:
        with atomic_path(self.file(name)) as temporary:
            Path(temporary).write_text(json.dumps(finite(document), indent=1) + "\n", encoding="utf-8")
        self.wrote = True

    def give_up(self) -> None:
        """Remove what a run wrote that ended before it had a plan: to resume it would only end the same way."""
        if self._pending:
            self._pending = {}  # the run that was to be replaced is still there
        elif not self.file("plan.json").exists():
            for name in ("config.json", "state.json"):
                self.file(name).unlink(missing_ok=True)
            self.wrote = False

    def stage(self, name: str) -> Any:
        """What a finished stage recorded, or None."""
        return self.state["stages"].get(name)

    def finish_stage(self, name: str, record: Any) -> None:
        """Record that a stage is done, with its JSON-able result."""
        self.state["stages"][name] = finite(record)
        self.write_json("state.json", self.state)

    def close(self) -> None:
        """Release the lock and the log."""
        if self._log is not None:
            with suppress(OSError):  # a full disk: what is buffered is lost, the run's own error says so
                self._log.close()
            self._log = None
        if self._lock is not None:
            self._lock.close()  # the file stays: deleting it would let two later runs lock two different files
            self._lock = None


def finite(value: Any) -> Any:
    """The same JSON value with NaN and infinities replaced by null, which JSON has no words for."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, os.PathLike) else value


def free_folder(wanted: Path) -> Path:
    """The folder itself if nothing is there, else the first free `NAME-2`, `NAME-3`, ..."""
    return next(folder for folder in _numbered(wanted) if not _used(folder))


def latest_folder(wanted: Path) -> Path:
    """The last of the folders that `free_folder` gave out in turn; the folder itself where there is none."""
    used = list(itertools.takewhile(_used, _numbered(wanted)))
    return used[-1] if used else wanted


def _numbered(wanted: Path) -> Iterator[Path]:
    yield wanted
    yield from (wanted.with_name(f"{wanted.name}-{number}") for number in itertools.count(2))


def _used(path: Path) -> bool:
    return path.exists() and any(path.iterdir() if path.is_dir() else [path])
