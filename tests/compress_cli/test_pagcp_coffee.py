"""The three-task example: its network, its data set from a folder, and leaves without a mask."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torchvision.io import write_jpeg, write_png

from pruners.channels import analyse, make_plan

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "coffee_leaves.py"


@pytest.fixture
def coffee(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    rows = ["id,image,mask,split,stress,severity"]
    for folder in ("leaf", "mask"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        pixels = torch.full((3, 64, 128), 60 * number, dtype=torch.uint8)
        write_jpeg(pixels, str(tmp_path / "leaf" / f"{number}.jpg"))
        mask = torch.zeros(1, 64, 128, dtype=torch.uint8)
        mask[:, :, 64:] = 2
        write_png(mask, str(tmp_path / "mask" / f"{number}.png"))
        name = f"mask/{number}.png" if number % 2 else ""
        rows.append(f"{number},leaf/{number}.jpg,{name},{'train' if number < 3 else 'test'},{number},{4 - number}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setenv("COFFEE_LEAVES", str(tmp_path))
    spec = importlib.util.spec_from_file_location("coffee_leaves_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_leaves_without_a_mask_have_no_loss_there(coffee: ModuleType) -> None:
    data = coffee.train_data()
    assert (len(data), len(coffee.test_data())) == (3, 1)
    images = torch.stack([data[place][0] for place in range(3)])
    assert images.shape == (3, 3, 32, 64)
    torch.testing.assert_close(images.mean((1, 2, 3)), torch.tensor([0.0, 60.0, 120.0]) / 255, atol=0.01, rtol=0)
    target = {name: torch.stack([data[place][1][name] for place in range(3)]) for name in data[0][1]}
    assert target["stress"].tolist() == [0, 1, 2]
    assert target["severity"].tolist() == [4, 3, 2]
    assert (target["mask"][1][:, :16].unique().tolist(), target["mask"][1][:, 16:].unique().tolist()) == ([0], [2])
    outputs = coffee.coffee_resnet(4).eval()(images)
    losses = {task.name: task.losses(outputs, target) for task in coffee.tasks()}
    assert losses["mask"].isnan().tolist() == [True, False, True]
    assert not losses["stress"].isnan().any()


def test_every_stage_of_the_network_can_lose_channels(coffee: ModuleType) -> None:
    net = coffee.coffee_resnet(4)
    groups = analyse(net, (torch.zeros(1, 3, 32, 64),))
    assert {"stem", "stage1.0.conv1", "stage4.1.conv1", "detail"} <= set(groups.by_name())
    halved = make_plan(groups, {group.name: range(group.units // 2) for group in groups.groups})
    assert halved.macs_after < 0.35 * halved.macs_before
    assert "stress.weight" in halved.keep
    assert 0 not in halved.keep["stress.weight"]
