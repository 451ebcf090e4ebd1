"""Files that are whole or absent: write to a temporary name in the same folder, sync, rename.

A full disk, a read-only place or a vanished folder becomes one `InputError` that names the place, whoever noticed it:
Python (`OSError`), torch's zip writer (`RuntimeError`) or safetensors (`SafetensorError`, text only).
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compress_cli.errors import InputError

# What an OSError must say to be about the place written to, not about something the writer was reading.
_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}
_ACCESS = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# torch's C++ zip writer hides errno behind these texts; safetensors prints the operating system's own.
_WRITER_TEXTS = (
    "PytorchStreamWriter failed",
    "inline_container.cc",
    "file write failed",
    "unexpected pos",
    "iostream error",
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Read-only file system",
)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any failure it is removed.

    The temporary name ends in the final one, so a writer that looks at the suffix sees the right one.

    Example: `with atomic_path("run/report.json") as temporary: temporary.write_text(text)`.

    Raises:
        InputError: the folder is missing or cannot be written to, `path` is a folder, or the disk is full.
    """
    target = Path(path)
    _check_place(target)
    temporary = target.with_name(f".tmp-{secrets.token_hex(4)}-{target.name}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
    except OSError as error:
        if _about_the_place(error, temporary):
            raise _place_error(target, error.errno, error.strerror or str(error)) from error
        raise
    except Exception as error:
        if any(text in str(error) for text in _WRITER_TEXTS):
            raise _place_error(target, _errno_behind(error), str(error).strip().splitlines()[0]) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()
    with suppress(OSError):  # some file systems refuse to sync a folder; the file itself is safe
        _sync(target.parent)


def _check_place(target: Path) -> None:
    folder = target.parent
    try:
        target.lstat()
    except PermissionError as error:  # the folder, or one above it, may not even be looked into
        raise _place_error(target, error.errno, error.strerror or "") from error
    except OSError:  # not there yet, or what the checks below and the writer report
        pass
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder", "name a file inside it")
    if not folder.exists():
        raise InputError(f"cannot write {target}: the folder {folder} does not exist", f"mkdir -p {folder}")
    if not folder.is_dir():
        raise InputError(f"cannot write {target}: {folder} is a file, not a folder", "choose another place with -o")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _place_error(target, errno.EACCES, os.strerror(errno.EACCES))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _about_the_place(error: OSError, temporary: Path) -> bool:
    if error.errno in _PLACE:
        return True
    named = [os.fspath(name) for name in (error.filename, error.filename2) if name is not None]
    return error.errno in _ACCESS and os.fspath(temporary) in [os.fsdecode(name) for name in named if name]


def _errno_behind(error: BaseException | None) -> int | None:
    """The errno of the `OSError` that a writer wrapped; None when it left none."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def _place_error(target: Path, number: int | None, reason: str) -> InputError:
    folder = target.parent
    if number in _FULL or (number is None and _nearly_full(folder)) or "No space left" in reason:
        return InputError(
            f"cannot write {target}: no space left ({reason}; {_free(folder)} free in {folder})",
            "free some space, or choose another place with -o",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(
            f"cannot write {target}: no permission to write in {folder} ({reason})",
            "choose a folder that you own with -o, or change its permissions",
        )
    return InputError(f"cannot write {target}: {reason}", "check the disk, or choose another place with -o")


def _free(folder: Path) -> str:
    with suppress(OSError):
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"
    return "an unknown amount"


def _nearly_full(folder: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(folder).free < 64 * 1024 * 1024
    return False
