"""The measured table of real CIFAR-10 networks: counts, thresholds and densities of plain global pruning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pruners.magnitude import MagnitudeOptions, apply_, candidates_in_state_dict, plan

# (network, N, sparsity, k, threshold, minimum density, its tensor, conv1 density, linear density)
TABLE = [
    ("resnet20", 268_336, "0.5", 134_168, 0.05242801, 0.2519, "layer3.2.conv2.weight", 0.7176, 0.9062),
    ("resnet20", 268_336, "0.8", 214_669, 0.11054938, 0.0312, "layer3.2.conv2.weight", 0.5856, 0.8344),
    ("resnet20", 268_336, "0.9", 241_502, 0.14932318, 0.0073, "layer3.2.conv2.weight", 0.5139, 0.7828),
    ("resnet56", 848_944, "0.8", 679_155, 0.06535498, 0.0317, "layer3.8.conv2.weight", 0.7060, 0.9062),
    ("resnet56", 848_944, "0.9", 764_050, 0.09049669, 0.0099, "layer3.8.conv2.weight", 0.6551, 0.8562),
]


def weights(folder: Path, network: str) -> dict[str, Tensor]:
    saved = torch.load(folder / "checkpoints" / f"cifar10-{network}.th", map_location="cpu", weights_only=True)
    return {name.removeprefix("module."): tensor for name, tensor in saved["state_dict"].items()}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[2]}")
def test_the_table_is_reproduced(shared_data: Path, row: tuple) -> None:
    network, total, sparsity, k, threshold, least, thinnest, conv1, linear = row
    net = weights(shared_data, network)
    decided = plan(candidates_in_state_dict(net), MagnitudeOptions(sparsity, floor="0"))
    assert (decided.weights, decided.zeros_asked, decided.zeros_after) == (total, k, k)
    assert decided.threshold == pytest.approx(threshold, abs=5e-9)
    density = {cut.name: cut.density for cut in decided.cuts}
    assert min(density, key=density.__getitem__) == thinnest
    assert density[thinnest] == pytest.approx(least, abs=5e-5)
    assert density["conv1.weight"] == pytest.approx(conv1, abs=5.1e-5)
    assert density["linear.weight"] == pytest.approx(linear, abs=5.1e-5)
    assert bool(decided.warnings) == (least < 0.01)
    apply_(net, decided)
    assert sum(int((net[name] == 0).sum()) for name in decided.names) == k


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_counts_are_exact_after_saving_and_reloading(shared_data: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    net = weights(shared_data, "resnet20")
    net = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in net.items()}
    decided = plan(candidates_in_state_dict(net), MagnitudeOptions("0.9"))
    apply_(net, decided)
    torch.save(net, tmp_path / "net.pt")
    read = torch.load(tmp_path / "net.pt", weights_only=True)
    assert sum(int((read[name] == 0).sum()) for name in decided.names) == 241_502
    assert not any(bool((torch.signbit(read[name]) & (read[name] == 0)).any()) for name in decided.names)
    assert read.keys() == net.keys()
