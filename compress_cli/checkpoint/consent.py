"""May a file choose what builds its network? A stored architecture names a function and its arguments.

torchvision's builders, timm's and this package's own are known to build networks and nothing else. Any other reference
would let a stranger's file call a function of its choice (`os:system`), so it is followed only when it is the user's
own code: a file under the current folder (not in an installed package), one that this process runs already because the
user named it, or whatever `--arch` names.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from compress_cli.checkpoint.architecture import Architecture, is_file_reference
from compress_cli.checkpoint.factories import find_file, module_name
from compress_cli.errors import InputError

_OWN = ("compress_cli.demo.",)
_INSTALLED = {"site-packages", "dist-packages"}
# timm arguments that load further files or download
_TIMM_REFUSED = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


def require_consent(architecture: Architecture, checkpoint: Path) -> None:
    """Check that an architecture that comes from inside `checkpoint` may be built.

    Raises:
        InputError: it is not a known builder, nor the user's own code in the current folder.
    """
    source, _, name = architecture.reference.rpartition(":")
    if source == "torchvision" or f"{source}.".startswith(_OWN):
        return
    if source == "timm" and not _TIMM_REFUSED & dict(architecture.args).keys():
        return
    if source != "timm" and not name.startswith("_") and _is_users_own(source, checkpoint.parent):
        return
    raise InputError(
        f"{checkpoint} says that {architecture} builds its network; that is no code of the current folder, and a "
        "checkpoint does not decide what is run",
        " ".join(
            [
                f"if it is your code, confirm it: --arch {architecture.reference}",
                *(f"--arch-args {key}={value}" for key, value in architecture.args),
                "(in Python: compress_cli.load(FILE, arch=..., arch_args=[...]))",
            ]
        ),
    )


def _is_users_own(source: str, beside: Path) -> bool:
    if is_file_reference(source):
        try:
            file = find_file(source, beside)
        except InputError:
            return True  # there is nothing to run: building it says that the file is missing
        if module_name(file) in sys.modules:
            return True
        # not what only lies beside the checkpoint: it may have come with it
        return Path(source).expanduser().is_file() and _under_current_folder(file)
    package = Path.cwd().joinpath(*source.split("."))
    here = next((file for file in (package.with_suffix(".py"), package / "__init__.py") if file.is_file()), None)
    if here is None or not _under_current_folder(here):
        return False
    top = importlib.util.find_spec(source.partition(".")[0])  # the current folder comes last in the search
    return top is not None and top.origin is not None and _under_current_folder(Path(top.origin))


def _under_current_folder(file: Path) -> bool:
    folder, file = Path.cwd().resolve(), file.resolve()
    if not file.is_relative_to(folder):
        return False
    parts = file.relative_to(folder).parts
    return not any(part in _INSTALLED or part.startswith(".") for part in parts)
