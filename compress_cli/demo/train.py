"""Train the demo's network from scratch: a few seconds on one CPU core."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from compress_cli.atomic import atomic_path
from compress_cli.demo.digits import is_test, load_digits
from compress_cli.demo.net import two_task_cnn
from compress_cli.errors import InputError, UsageError

EPOCHS, BATCH, LR = 8, 64, 0.05


def train_original(seed: int = 0, epochs: int = EPOCHS) -> nn.Module:
    """The trained network, in eval mode; the same for the same seed."""
    torch.manual_seed(seed)
    images, digits = load_digits()
    images, digits = images[~is_test()], digits[~is_test()]
    network = two_task_cnn().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2 * LR, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            if len(batch) < BATCH:
                continue
            outputs = network(images[batch])
            loss = F.cross_entropy(outputs["digit"], digits[batch])
            loss = loss + F.cross_entropy(outputs["parity"], digits[batch] % 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def write_original(path: Path, seed: int = 0, overwrite: bool = False) -> float:
    """Train and write the state dict to `path`; returns the seconds it took.

    Raises:
        UsageError: the file is there and `overwrite` was not asked.
        InputError: the folder cannot be written to.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already", "replace it with --overwrite, or choose -o DIR")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {path.parent}: {error.strerror}", "choose -o DIR") from error
    begin = time.perf_counter()
    network = train_original(seed)
    with atomic_path(path) as temporary:
        torch.save(network.state_dict(), temporary)
    return time.perf_counter() - begin
