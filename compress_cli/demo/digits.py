"""The 1,797 handwritten digits of the UCI repository (see DIGITS.md), split once and for all."""

from __future__ import annotations

from importlib.resources import files
from io import BytesIO

import numpy as np
import torch
from torch import Tensor

EVERY = 5
"""Every fifth image is a test image."""


def load_digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) with values 0..1, and digits (1797,)."""
    content = files("compress_cli.demo").joinpath("digits.npz").read_bytes()
    with np.load(BytesIO(content), allow_pickle=False) as archive:
        images = torch.from_numpy(archive["images"].astype(np.float32) / 16).unsqueeze(1)
        return images, torch.from_numpy(archive["labels"].astype(np.int64))


def is_test() -> Tensor:
    """(1797,) True for the 359 test images; the other 1,438 train."""
    return torch.arange(1797) % EVERY == EVERY - 1
