"""Import and call a user's network factory, turning each way it can fail into an error that says what to do."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from compress_cli.errors import InputError

_NETWORK_ERRORS = (
    "URLError",
    "HTTPError",
    "gaierror",
    "ConnectionError",
    "ConnectTimeout",
    "ConnectError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "MaxRetryError",
)


def import_file(source: str, search_from: Path | None) -> ModuleType:
    """Import a Python file by path, with its folder importable for its neighbours.

    Raises:
        InputError: not found, a syntax error, or an error while it runs.
    """
    file = find_file(source, search_from)
    name = module_name(file)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"--arch {source}: {file} is not a Python file", "pass path/to/net.py:factory")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up by name while it runs
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_error(str(file), error) from error
    return module


def import_module(source: str) -> ModuleType:
    """Import a module by its dotted name, also from the current folder.

    Raises:
        InputError: not found, or an error while it runs.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name and (source == error.name or source.startswith(error.name + ".")):
            raise InputError(
                f"--arch {source}: there is no module {error.name!r}",
                "install it, run compress in the folder that holds it, or pass path/to/net.py:factory",
            ) from error
        raise _import_error(source, error) from error
    except (Exception, SystemExit) as error:
        raise _import_error(source, error) from error


def call(factory: Callable[..., Any], arguments: Mapping[str, Any], reference: str) -> Any:
    """Call the factory; whatever it raises is reported with its last line and place.

    Raises:
        InputError: wrong arguments, an attempt to download, or any other failure inside the factory.
    """
    try:
        return factory(**arguments)
    except (Exception, SystemExit) as error:
        raise _call_error(factory, arguments, reference, error) from error


def missing_factory(module: ModuleType, source: str, name: str) -> InputError:
    """The refusal of a name that the file does not define, listing those it does."""
    import difflib

    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    close = difflib.get_close_matches(name, own, n=3)
    listed = ", ".join(own[:12]) or "none"
    return InputError(
        f"{source} defines no {name!r} (callables there: {listed})",
        f"did you mean {source}:{close[0]}?" if close else f"pass --arch {source}:NAME with one of them",
    )


def module_name(file: Path) -> str:
    """The name in `sys.modules` that a factory's file is imported under."""
    return f"compress_arch_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"


def find_file(source: str, search_from: Path | None) -> Path:
    """The file, looked for here, then in `search_from` (the checkpoint's folder) and in the folders above it.

    Raises:
        InputError: it is nowhere.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path.resolve()
    if search_from is not None and not path.is_absolute():
        start = search_from.resolve()
        for folder in (start, *start.parents):
            if (folder / path).is_file():
                return folder / path
    raise InputError(
        f"--arch: the file {source} does not exist (looked in {Path.cwd()}"
        + (f", in {search_from} and above it)" if search_from else ")"),
        "check the path; write path/to/net.py:factory",
    )


def _import_error(source: str, error: BaseException) -> InputError:
    if isinstance(error, SyntaxError):
        place = f"{error.filename or source}, line {error.lineno}"
        return InputError(f"--arch {source} has a syntax error: {error.msg} ({place})", "correct the file")
    if isinstance(error, SystemExit):
        return InputError(
            f"--arch {source} ended Python while it was imported (SystemExit {error.code})",
            "put what the script does under: if __name__ == '__main__':",
        )
    if _wants_network(error):
        return _network_error(source, error)
    return InputError(f"--arch {source} cannot be imported: {_last_line(error)}{_place(error)}", "correct the file")


def _call_error(
    factory: Callable[..., Any], arguments: Mapping[str, Any], reference: str, error: BaseException
) -> InputError:
    if _wants_network(error):
        return _network_error(reference, error)
    if isinstance(error, TypeError) and not _raised_inside(error):
        return InputError(
            f"--arch {reference} cannot be called with {dict(arguments) or 'no arguments'}: {error}",
            f"its arguments: {_signature(factory)}; pass them with --arch-args NAME=VALUE",
        )
    return InputError(
        f"--arch {reference} raised {_last_line(error)}{_place(error)}", "correct the factory or its --arch-args"
    )


def _raised_inside(error: BaseException) -> bool:
    """Whether the error comes from the factory's body, not from the call itself."""
    frames = traceback.extract_tb(error.__traceback__)
    return len(frames) > 1


def _signature(factory: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(factory))
    except (TypeError, ValueError):
        return "unknown"


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _wants_network(error: BaseException | None) -> bool:
    while error is not None:
        if any(kind.__name__ in _NETWORK_ERRORS for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False


def _network_error(reference: str, error: BaseException) -> InputError:
    return InputError(
        f"--arch {reference} tried to download something and could not: {_last_line(error)}",
        "build the network without pretrained weights (weights=None, pretrained=False); they come from the checkpoint",
    )
