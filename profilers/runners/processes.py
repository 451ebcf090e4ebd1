"""Starting programs without a shell: time limit, captured output, one clear error."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from profilers.runners.result import RunnerFailed, tail


def run(command: Sequence[str], *, timeout_s: float, stdin: bytes | Path | None = None, what: str = "") -> str:
    """Standard output of `command`.

    Args:
        command: program and arguments; never given to a shell.
        stdin: bytes, or a file to stream.
        what: names the step in errors; default: the program.

    Raises:
        RunnerFailed: the program is not there, fails, or takes longer than `timeout_s`; with its last lines.
    """
    return _text(_completed(command, timeout_s, stdin, what or command[0]).stdout)


def run_with_errors(command: Sequence[str], *, timeout_s: float, what: str = "") -> str:
    """Standard output and then standard error of `command`; raises as `run` does."""
    done = _completed(command, timeout_s, None, what or command[0])
    return _text(done.stdout) + _text(done.stderr)


def _completed(
    command: Sequence[str], timeout_s: float, stdin: bytes | Path | None, step: str
) -> subprocess.CompletedProcess[bytes]:
    try:
        if isinstance(stdin, Path):
            with stdin.open("rb") as file:
                done = subprocess.run(command, stdin=file, capture_output=True, timeout=timeout_s, check=False)
        else:
            done = subprocess.run(command, input=stdin or b"", capture_output=True, timeout=timeout_s, check=False)
    except FileNotFoundError as error:
        raise RunnerFailed(f"{error.filename or command[0]} is not there") from error
    except PermissionError as error:
        raise RunnerFailed(f"{command[0]} may not be run") from error
    except subprocess.TimeoutExpired as error:
        printed = (error.stdout or b"") + (error.stderr or b"")
        raise RunnerFailed(f"{step} took longer than {timeout_s:g} s", tail(_text(printed))) from error
    if done.returncode != 0:
        raise RunnerFailed(f"{step} ended with status {done.returncode}", tail(_text(done.stdout + done.stderr)))
    return done


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
