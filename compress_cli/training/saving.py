"""Training states on disk: whole or absent, read without running pickled code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from compress_cli.atomic import atomic_path
from compress_cli.errors import InputError

FORMAT = 1
STATE = "checkpoints/last.pt"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state atomically.

    Raises:
        InputError: the disk is full or the folder cannot be written to; an earlier state stays whole.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {path.parent}: {error.strerror}", "check the output folder") from error
    with atomic_path(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_state(path: Path) -> dict[str, Any] | None:
    """A saved training state; None when there is none.

    Raises:
        InputError: damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path} cannot be read: {str(error).splitlines()[0]}", "start the training again with --overwrite"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is not a training state of this version", "start the training again with --overwrite")
    return state
