"""A tiny network and the ways people store one; nets and files are a few kilobytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress_cli.errors import CompressError

NET_SOURCE = '''
import torch
from torch import nn


class Net(nn.Module):
    """A convolution, a batch norm and a classifier."""

    def __init__(self, classes=2, note=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)
        self.note = note

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))


class Wrapper(nn.Module):
    """Has the network as `model`, so that its names begin with a prefix that is usually stripped."""

    def __init__(self):
        super().__init__()
        self.model = Net()

    def forward(self, x):
        return self.model(x)


def make(classes=2, note=None):
    print("a factory that prints")
    return Net(classes, note)


def needs(classes):
    return Net(classes)


def fails():
    raise ValueError("the paint is wet")


def number():
    return 3


def leaves():
    raise SystemExit(3)


def downloads():
    import urllib.error
    raise urllib.error.URLError("no route to host")


instance = Net()
_hidden = make
'''

NAMES = {
    "conv.weight": (4, 3, 3, 3),
    "conv.bias": (4,),
    "bn.weight": (4,),
    "bn.bias": (4,),
    "bn.running_mean": (4,),
    "bn.running_var": (4,),
    "bn.num_batches_tracked": (),
    "fc.weight": (2, 4),
    "fc.bias": (2,),
}


class LocalNet(nn.Module):
    """A class that only this test file knows: pickling it stores code by reference."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def weights(dtype: torch.dtype = torch.float32, classes: int = 2) -> dict[str, Tensor]:
    """A state dict of `Net` with distinct values: 0, 1, 2, ... over all tensors, divided by 100."""
    made: dict[str, Tensor] = {}
    count = 0
    for name, shape in NAMES.items():
        shape = (classes, *shape[1:]) if name.startswith("fc") else shape
        if name.endswith("tracked"):
            made[name] = torch.tensor(7)
            continue
        size = torch.Size(shape).numel()
        made[name] = ((torch.arange(size) + count) / 100).reshape(shape).to(dtype)
        count += size
    return made


def save_torch(path: Path, payload: Any, *, legacy: bool = False) -> Path:
    """torch.save in today's format or the one before PyTorch 1.6."""
    torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_net(folder: Path) -> Path:
    """The factory file `net.py`."""
    file = folder / "net.py"
    file.write_text(NET_SOURCE, encoding="utf-8")
    return file


def refusal(error: CompressError) -> str:
    """Message and fix in one text, for matching."""
    return f"{error.message} | {error.fix}"
