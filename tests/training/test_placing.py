"""A module moves to a device and back to where it was, however often that is nested."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress_cli.training.placing import placed

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize("module", [nn.Linear(2, 2, device=META), nn.BatchNorm2d(2, affine=False, device=META)])
def test_a_module_that_is_on_the_device_stays_there(module: nn.Module) -> None:
    with placed(module, META), placed(module, META):
        pass
    assert all(tensor.device == META for tensor in [*module.parameters(), *module.buffers()])


def test_a_module_moves_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[torch.device] = []

    def note(self: nn.Module, device: torch.device) -> nn.Module:
        moves.append(device)
        return self

    monkeypatch.setattr(nn.Module, "to", note)
    with placed(nn.Linear(2, 2), META):
        pass
    assert moves == [META, CPU]
    with placed(nn.ReLU(), META), placed(nn.Linear(2, 2), CPU):
        pass
    assert moves == [META, CPU]
