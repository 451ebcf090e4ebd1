"""`--tensorboard DIR`: the run's curves as a TensorBoard directory; the package is an optional extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress_cli.errors import InputError, UsageError

_SKIPPED = {"epoch", "step", "seconds"}


def check_tensorboard(folder: str | None) -> None:
    """Refuse the flag before anything is read where the package is missing.

    Raises:
        UsageError: it is.
    """
    if folder is not None and importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "--tensorboard needs the package tensorboard, which is not installed",
            "pip install 'compress-cli[tensorboard]', or drop the flag: history.csv in the run folder has the curves",
        )


class Curves:
    """Writes scalars; does nothing without a folder, and in all processes but the first.

    Args:
        begin: the step that a run begins or goes on at; what an interrupted run wrote beyond it is dropped.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: str | None, begin: int) -> None:
        self._writer: Any = None
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._writer = SummaryWriter(folder, purge_step=begin or None)
        except OSError as error:
            raise InputError(
                f"cannot write into the TensorBoard folder {folder}: {error.strerror}", "choose another --tensorboard"
            ) from error

    def epoch(self, row: Mapping[str, Any]) -> None:
        """All numbers of one row of the history, at its step."""
        for name, value in row.items():
            if name not in _SKIPPED and isinstance(value, (int, float)):
                self.point(f"epoch/{name}", float(value), int(row["step"]))
        if self._writer is not None:
            self._writer.flush()

    def point(self, name: str, value: float, step: int) -> None:
        """One number."""
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
