"""What a torch.save pickle would have to run: the blocked names, stand-ins for harmless ones, and the refusal.

`torch.load(weights_only=True)` runs no code, but stops at every class that it does not know. Training scripts store a
few harmless value classes beside the weights (`argparse.Namespace`, NumPy scalars, paths). For those, an inert stand-in
that keeps nothing is put in their place, so that the weights can be read; the real classes are never touched.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from compress_cli.errors import InputError

_HARMLESS = (
    "argparse.Namespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "datetime.datetime",
    "datetime.timedelta",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
)
_PLAIN = (
    "collections.OrderedDict",
    "torch._utils.",
    "torch.Size",
    "torch.storage.",
    "torch._tensor.",
    "torch.nn.parameter.Parameter",
    "__builtin__.set",
    "builtins.set",
)


_LEGACY_HEAD = 32 * 1024 * 1024  # bytes of a legacy file that hold its pickles; the weights follow


class Inert:
    """Stands in for an object of a checkpoint that is not needed: takes anything, keeps nothing, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Ignore the arguments of the class stood in for."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        return

    def __setstate__(self, state: Any) -> None:
        return


@contextmanager
def inert_globals() -> Iterator[set[str]]:
    """Within the block, `weights_only` unpickling puts `Inert` objects for harmless classes; yields the names met."""
    met: set[str] = set()

    def stand_in(name: str) -> type[Inert]:
        def create(cls: type[Inert], *args: Any, **kwargs: Any) -> Inert:
            met.add(name)
            return Inert.__new__(cls)

        return type("Inert", (Inert,), {"__new__": create})

    with torch.serialization.safe_globals([(stand_in(name), name) for name in _HARMLESS]):
        yield met


def inert_notes(met: set[str]) -> tuple[str, ...]:
    """One remark naming the classes that were not read."""
    return (f"not read from the file: objects of {', '.join(sorted(met))}",) if met else ()


def blocked_globals(file: Path) -> list[str]:
    """Names of classes and functions that unpickling would have to run, found by disassembly; runs nothing."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # a legacy file, or a stranger's bytes that its disassembler stumbles over
        names = _legacy_globals(file)
    return sorted(name for name in set(names) if name not in _HARMLESS)


def _legacy_globals(file: Path) -> list[str]:
    """The same for a file of several pickles in a row, which torch's own function does not read."""
    names: set[str] = set()
    with file.open("rb") as opened:
        stream = io.BytesIO(opened.read(_LEGACY_HEAD))  # in memory: a damaged length must not ask for gigabytes
    try:
        for _ in range(4):  # magic number, protocol, system, object; the storages follow
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    names.add(str(argument).replace(" ", "."))
    except Exception:  # not a pickle after all: nothing can be named
        return []
    return [name for name in names if not name.startswith(_PLAIN) and not name.endswith("Storage")]


def blocked_error(file: Path, names: list[str]) -> InputError:
    """The refusal of a file whose code would have to run, naming that code."""
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return InputError(
        f"{file} holds pickled objects, and loading them would run code: {shown}",
        "re-save the weights alone where they were made: torch.save(model.state_dict(), 'weights.pt'); "
        "or, only if you trust the file: --trust-pickle",
    )
