"""Several processes under `torchrun`: join them, let only the first speak and write, and share its saved state.

    torchrun --nproc-per-node 8 -m compress_cli finetune model.pt --data DIR -o run

Every process runs the same pipeline; the plan and the weights come from the first. A worker that dies makes torchrun
start all of them again (`--max-restarts`), and they go on from the last saved state as with `--resume`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_cli.console import Out
from compress_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console

    from compress_cli.config import RunConfig

SHARED = ("config.json", "state.json", "checkpoints/last.pt")
"""What a resumed run needs of the first process's folder."""
PATIENCE = timedelta(hours=6)
"""How long a process waits for the others, while the first one plans; torchrun ends those that wait for a dead one."""


@dataclass(frozen=True, slots=True)
class Place:
    """How one process is to run."""

    config: RunConfig
    out: Out
    resume: bool
    first: bool


class Silent(Out):
    """The output of all processes but the first."""

    def _line(self, text: str, *, show: bool) -> None:
        return

    def result(self, document: Mapping[str, Any], render: Callable[[Console], None]) -> None:
        """Nothing."""


@contextmanager
def joined(config: RunConfig, out: Out, *, resume: bool) -> Iterator[Place]:
    """Take part in a `torchrun` launch; alone, nothing changes.

    Raises:
        UsageError: several processes without an output folder to share.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield Place(config, out, resume, True)
        return
    if not config.output:
        raise UsageError("several processes need one output folder", "pass -o DIR")
    import torch
    from torch import distributed as dist

    from compress_cli.training.placing import choose_device

    device = choose_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL takes the current device: without it, the first GPU in every process
    scratch = Path(tempfile.mkdtemp(prefix="compress-rank-"))
    try:
        _join("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        resume = resume or (_attempt() > 0 and _first_has_begun(Path(config.output)))
        if dist.get_rank() == 0:
            _give(Path(config.output), resume)
            yield Place(config, out, resume, True)
        else:
            _take(scratch)
            mine = dataclasses.replace(config, output=str(scratch), bench=False, export=False)
            yield Place(mine, Silent(quiet=True), resume, False)
    except RuntimeError as error:
        if not any(word in str(error) for word in ("gloo", "NCCL", "Connection")):
            raise
        raise InputError(
            f"another process of this run has ended: {str(error).splitlines()[0][:200]}",
            "see its own message; torchrun --max-restarts N goes on from the last saved state by itself",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if dist.is_initialized():
            dist.destroy_process_group()


def _attempt() -> int:
    """How often torchrun has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _join(backend: str) -> None:
    """Join the process group under names of this attempt only.

    With a static rendezvous (`--master-port`) torchrun's store outlives a restart, and PyTorch leaves the addresses of
    the processes that died in it: the restarted ones would try to connect to those.
    """
    from torch import distributed as dist

    store, rank, world_size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    store = dist.PrefixStore(f"compress/attempt-{_attempt()}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=PATIENCE)


def _first_has_begun(folder: Path) -> bool:
    """Whether a run had been begun before the restart, as the first process sees it."""
    from torch import distributed as dist

    found = [(folder / "config.json").exists()]
    dist.broadcast_object_list(found)
    return found[0]


def _give(folder: Path, resume: bool) -> None:
    """Send the saved state to the others."""
    from torch import distributed as dist

    files = {name: (folder / name).read_bytes() for name in SHARED if resume and (folder / name).is_file()}
    dist.broadcast_object_list([files])


def _take(folder: Path) -> None:
    """Receive the first process's saved state."""
    from torch import distributed as dist

    received: list[dict[str, bytes]] = [{}]
    dist.broadcast_object_list(received)
    for name, content in received[0].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
