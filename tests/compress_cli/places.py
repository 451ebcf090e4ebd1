"""Places that cannot be written to, for tests that also run as root."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def without_privileges(*folders: Path) -> Iterator[None]:
    """Become an ordinary user for a moment where the tests run as root, who may write anywhere.

    `folders` are opened for that user meanwhile: pytest's own are closed to others.
    """
    if os.geteuid() != 0:
        yield
        return
    opened = [(folder, folder.stat().st_mode) for folder in folders]
    for folder, _ in opened:
        folder.chmod(0o755)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        for folder, mode in opened:
            folder.chmod(mode)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A limit on the size of files makes every writer fail in its middle, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    """Names of what is in a folder, at any depth."""
    return sorted(str(item.relative_to(folder)) for item in folder.rglob("*"))
