"""A tiny run: the digits network, its task, a session in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset

from compress_cli.config import RunConfig, resolve
from compress_cli.console import Out
from compress_cli.data import Data
from compress_cli.data.loading import LoadedSplit
from compress_cli.demo.net import two_task_cnn
from compress_cli.demo.task import Digits, tasks
from compress_cli.quality import Quality
from compress_cli.session import Session, open_session

torch.set_num_threads(1)


def small_data(images: int = 192) -> Data:
    """The first images of the digits, labels known."""
    train, test = Digits(test=False), Digits(test=True)
    part = LoadedSplit(Subset(train, range(images)), labels=train.labels[:images])
    held = LoadedSplit(Subset(test, range(64)), labels=test.labels[:64])
    return Data(tasks(), part, held, part, True, images // 2, None, {"source": "digits"})


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(1)
    return two_task_cnn(8)


@pytest.fixture
def open_run(tmp_path: Path) -> Callable[..., Any]:
    """`with open_run(epochs=2) as (session, quality)`: a session in one folder, to be resumed too."""

    @contextmanager
    def opened(*, resume: bool = False, images: int = 192, **flags: Any) -> Iterator[tuple[Session, Quality]]:
        flags = {"output": str(tmp_path / "run"), "batch_size": 32, "sparsity": "0.8", **flags}
        config: RunConfig = resolve("prune", "original.pt", flags)
        with open_session(config, Out(quiet=True), resume=resume, overwrite=not resume) as session:
            yield session, Quality(session, small_data(images), torch.device("cpu"))

    return opened
