"""What one run carries along: configuration, output, folder, timings, warnings; and how it ends when interrupted."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from compress_cli.config import RunConfig
from compress_cli.console import Out
from compress_cli.errors import EXIT_INTERRUPTED, CompressError, UsageError
from compress_cli.quantities import Limit
from compress_cli.rundir import CONTENT, RunFolder, free_folder, latest_folder


class Interrupted(CompressError):
    """Ctrl-C or SIGTERM; the message says how to go on."""

    exit_code = EXIT_INTERRUPTED


T = TypeVar("T")


class Shared:
    """What several runs on one original may share: decoded data, its scores, its ONNX file, spectra.

    `folder` holds files that outlive a single run of a sweep; None for a run of its own.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._values: dict[str, Any] = {}

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """The value called `name`, computed at the first call."""
        if name not in self._values:
            self._values[name] = compute()
        found: T = self._values[name]
        return found

    def portable(self, names: Sequence[str]) -> dict[str, Any]:
        """Those of the named values that are known, for another process."""
        return {name: self._values[name] for name in names if name in self._values}

    def known(self, name: str, otherwise: Any) -> Any:
        """The value called `name`, or another one where it has not been computed."""
        return self._values.get(name, otherwise)


@dataclass(frozen=True, slots=True)
class Chain:
    """The place of a run among the steps of a combination (`compress combine`).

    Attributes:
        text: the step as it was typed; `earlier`: the report's lines of the steps before it.
        last: whether this run trains, exports and measures.
        baseline: what is known of the network that the first step began with; `checkpoint`: the report's section on it.
        limits: the gates of the whole combination.
    """

    text: str
    last: bool
    earlier: tuple[Mapping[str, Any], ...]
    baseline: Shared
    checkpoint: Mapping[str, Any]
    limits: tuple[Limit, ...]


class Session:
    """One run in progress."""

    def __init__(
        self,
        config: RunConfig,
        out: Out,
        folder: RunFolder | None,
        *,
        resume: bool,
        shared: Shared | None = None,
        chain: Chain | None = None,
    ) -> None:
        self.config = config
        self.out = out
        self.resume = resume
        self.shared = shared or Shared()
        self.chain = chain
        self._folder = folder
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.notes: list[str] = []

    @property
    def baseline(self) -> Shared:
        """What is known of the network that the result is compared with: that of the first step of a combination."""
        return self.chain.baseline if self.chain is not None else self.shared

    @property
    def last(self) -> bool:
        """Whether the result of this run is what is shipped (it is not in the first steps of a combination)."""
        return self.chain is None or self.chain.last

    @property
    def limits(self) -> tuple[Limit, ...]:
        """What the result is judged by: the run's limits, or those of the combination that it ends."""
        if self.chain is None:
            return self.config.limits()
        return self.chain.limits if self.last else ()

    @property
    def folder(self) -> RunFolder:
        """The run folder; a dry run has none and must not ask."""
        if self._folder is None:
            raise RuntimeError("a dry run has no folder")
        return self._folder

    @contextmanager
    def stage(self, name: str, announce: str = "") -> Iterator[None]:
        """Time a part of the run under `name` (repeated names add up) and say what begins."""
        if announce:
            self.out.info(announce)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def warn(self, text: str) -> None:
        """A warning now and in the report."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.out.warning(text)

    def note(self, text: str) -> None:
        """A remark for the report."""
        if text not in self.notes:
            self.notes.append(text)

    def recorded(self, name: str) -> Any:
        """The result of a stage that an earlier, interrupted run of this folder finished; None when there is none."""
        return self.folder.stage(name) if self.resume else None


def command_line() -> str:
    """The command that was typed, for the report."""
    return shlex.join(["compress", *(word for word in sys.argv[1:] if word != "--resume")])


@contextmanager
def open_session(
    config: RunConfig,
    out: Out,
    *,
    resume: bool,
    overwrite: bool,
    shared: Shared | None = None,
    chain: Chain | None = None,
) -> Iterator[Session]:
    """Hold the run folder for one run; on Ctrl-C or SIGTERM say how to resume; on failure leave no empty folder.

    Raises:
        Interrupted: the run was stopped from outside.
        UsageError: `resume` with another configuration than the folder's.
    """
    path = Path(config.output) if config.output else _default_folder(config, fresh=not (resume or overwrite))
    existed = path.exists()
    _keep_the_checkpoint(config, path)
    with RunFolder(path) as folder:
        folder.open(resume=resume, overwrite=overwrite)
        out.attach_log(folder.log)
        if resume and not _has_artifacts(path) and chain is None:
            out.info(f"{path} holds nothing to resume: the run starts from the beginning")
        config = _same_configuration(config, folder) if resume else config
        try:
            with _sigterm_as_interrupt():
                yield Session(config, out, folder, resume=resume, shared=shared, chain=chain)
        except KeyboardInterrupt as error:
            if folder.keeps_old:
                again = "repeat the command: compress " + shlex.join(sys.argv[1:])
                raise Interrupted("interrupted; the run that was to be replaced is untouched", again) from error
            state = f"the last good state is in {path}" if _has_artifacts(path) else "nothing was written yet"
            raise Interrupted(f"interrupted; {state}", _resume_command(path)) from error
        finally:
            out.attach_log(None)
            folder.close()
            _remove_if_empty(path, existed=existed, wrote=folder.wrote)


def _keep_the_checkpoint(config: RunConfig, folder: Path) -> None:
    """Refuse an output folder whose files the run would replace while it still reads one of them."""
    checkpoint = Path(config.checkpoint)
    if checkpoint.exists() and any(checkpoint.samefile(file) for name in CONTENT if (file := folder / name).exists()):
        raise UsageError(
            f"the output folder {folder} holds the checkpoint itself ({checkpoint.name}), which this run would replace",
            "choose another folder with -o DIR",
        )


def _default_folder(config: RunConfig, *, fresh: bool) -> Path:
    stem = Path(config.checkpoint).name.split(".")[0] or "model"
    asked = config.sparsity or config.max_params or config.max_flops or config.max_size or config.max_latency or ""
    budget = asked.replace("%", "pct").replace("=", "-").replace("/", "-")
    wanted = Path("runs") / "-".join(filter(None, (stem, config.method, budget)))
    return free_folder(wanted) if fresh else latest_folder(wanted)


def _same_configuration(config: RunConfig, folder: RunFolder) -> RunConfig:
    """The folder's saved configuration, which a resumed run must share wherever it changes the result."""
    import json

    path = folder.file("config.json")
    if not path.exists():
        return config
    saved = RunConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    free = {"output", "threads", "bench", "export", "version", "exit_zero", "max_size", "max_drop", "max_latency"}
    free.add("tensorboard")
    if config.score is None and saved.score == "magnitude":  # the one default of before it depended on the method
        if saved.method == "pagcp":
            saved = dataclasses.replace(saved, score=None)
        else:
            config = dataclasses.replace(config, score="magnitude")
    mine, theirs = config.to_dict(), saved.to_dict()
    different = [name for name in mine if name not in free and _plain(mine[name]) != _plain(theirs[name])]
    if different:
        name = different[0]
        raise UsageError(
            f"--resume with another --{name.replace('_', '-')}: {mine[name]!r}, the folder's run has {theirs[name]!r}",
            "repeat the first run's flags, or start another run with -o DIR",
        )
    return config


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _resume_command(path: Path) -> str:
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite")]
    given = any(word in ("-o", "--output") or word.startswith("--output=") for word in words)
    return "continue with: " + shlex.join(["compress", *words, *([] if given else ["-o", str(path)]), "--resume"])


def _remove_if_empty(path: Path, *, existed: bool, wrote: bool) -> None:
    """A run that failed before its first artifact leaves no folder behind (its log was only the error)."""
    if _has_artifacts(path) or (existed and not wrote):
        return
    for name in ("config.json", "log.txt", ".lock"):
        (path / name).unlink(missing_ok=True)
    if not existed and path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def _has_artifacts(path: Path) -> bool:
    """Whether a run wrote more into its folder than what it was asked for."""
    return any((path / name).exists() for name in (*CONTENT, "checkpoints") if name != "config.json")


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: signals are not ours to handle
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
