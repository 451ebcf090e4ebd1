"""Where words go: the result to stdout, everything else to stderr; human, JSON or quiet.

Rich draws tables and progress for people only. JSON is written directly: Rich would wrap it and eat `[brackets]`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def _plain_wanted() -> bool:
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def make_console(stream: IO[str]) -> Console:
    """A Rich console on one stream, without colour where the environment asks for none."""
    from rich.console import Console

    return Console(file=stream, no_color=_plain_wanted() or None, highlight=False, emoji=False, soft_wrap=False)


class Out:
    """The one place that prints. Build it once per command."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self.log: IO[str] | None = None

    def attach_log(self, log: IO[str] | None) -> None:
        """Also write every line for people to this open text file (the run folder's log.txt)."""
        self.log = log

    def _line(self, text: str, *, show: bool) -> None:
        if self.log is not None:
            self._append(self.log, f"{time.strftime('%H:%M:%S')} {text}\n")
        if show:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def _append(self, log: IO[str], line: str) -> None:
        """Add to the log; one that cannot be written (a full disk) is given up, the artifacts' writers say why."""
        try:
            log.write(line)
            log.flush()
        except OSError as error:
            self.log = None
            sys.stderr.write(f"Warning: the log is not written any more: {error.strerror}\n")

    def info(self, text: str) -> None:
        """A line of progress."""
        self._line(text, show=not self.quiet)

    def detail(self, text: str) -> None:
        """A line that only `-v` shows; the log has it always."""
        self._line(text, show=self.verbose and not self.quiet)

    def warning(self, text: str) -> None:
        """Something the user should know; shown even with `-q`."""
        self._line(f"Warning: {text}", show=True)

    def result(self, document: Mapping[str, Any], render: Callable[[Console], None]) -> None:
        """The command's answer: one JSON document, or what `render` draws."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
        else:
            render(make_console(sys.stdout))
        sys.stdout.flush()

    def progress(self, title: str) -> ProgressLine:
        """Progress of one long step on stderr: a live bar on a terminal, else a line per tenth."""
        return ProgressLine(self, title)


class ProgressLine(AbstractContextManager["ProgressLine"]):
    """Done/total with time left. On a terminal one transient bar, else a plain line at every further tenth."""

    def __init__(self, out: Out, title: str) -> None:
        self.out = out
        self.title = title
        self.begin = time.monotonic()
        self.tenth = 0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> ProgressLine:
        if sys.stderr.isatty() and not self.out.quiet and os.environ.get("TERM") != "dumb":
            self._bar = self._make_bar()
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=None, extra="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @staticmethod
    def _make_bar() -> Any:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[extra]}", markup=False),
        )
        return Progress(*columns, console=make_console(sys.stderr), transient=True)

    def update(self, done: int, total: int, extra: str = "") -> None:
        """Report `done` of `total` units; `extra` is a short text such as the loss."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, extra=extra)
            return
        tenth = done * 10 // max(total, 1)
        if tenth <= self.tenth or time.monotonic() - self.begin < 2:
            return
        self.tenth = tenth
        left = (time.monotonic() - self.begin) * (total - done) / max(done, 1)
        self.out.info(f"{self.title}: {done}/{total}, {format_seconds(left)} left{', ' + extra if extra else ''}")


def format_seconds(seconds: float) -> str:
    """A duration for people: `12 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
