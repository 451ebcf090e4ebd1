"""Batch-norm re-estimation: the average over batches, kept only when held-out loss falls, everything else untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compress_cli.training.batchnorm import mean_ratio, reestimate_, reestimate_if_better_


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())


def test_statistics_are_the_plain_average_over_the_batches() -> None:
    model = net().train()
    model[3].eval()
    batches = [(torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(i)),) for i in range(3)]
    assert reestimate_(model, batches) == 24
    outputs = [model[0](batch[0]) for batch in batches]
    torch.testing.assert_close(model[1].running_mean, torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0))
    variances = torch.stack([o.var((0, 2, 3), unbiased=True) for o in outputs]).mean(0)
    torch.testing.assert_close(model[1].running_var, variances)
    assert model[1].momentum == 0.1
    assert [layer.training for layer in model] == [True, True, True, False, True]


@pytest.mark.parametrize(("after", "kept"), [(0.9, True), (1.1, False), (1.0, False), (float("nan"), False)])
def test_kept_only_when_the_held_out_loss_falls(after: float, kept: bool) -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answers = iter([{"a": 1.0}, {"a": after}])
    record = reestimate_if_better_(model, [(torch.randn(8, 1, 6, 6),)], lambda: next(answers))
    assert record["kept"] is kept
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == (["1.running_mean", "1.running_var", "1.num_batches_tracked"] if kept else [])


def test_mean_ratio_weighs_tasks_relatively() -> None:
    assert mean_ratio({"a": 0.8, "b": 0.6}, {"a": 1.0, "b": 0.5}) == pytest.approx(1.0)
    assert mean_ratio({"a": 100.0, "b": 0.1}, {"a": 101.0, "b": 1.0}) < 1


def test_a_shifted_network_is_repaired_and_held_out_images_are_not_averaged(
    open_run: Callable[..., Any], network: nn.Module
) -> None:
    from compress_cli.demo.train import train_original

    model = train_original(0, epochs=2)
    good = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.bn2.running_var *= 20
    with open_run() as (_, quality):
        broken = quality.evaluate(model)["digit"].value
        record = quality.reestimate_batchnorm_(model)
        repaired = quality.evaluate(model)["digit"].value
    assert record["kept"]
    assert (record["images"], record["held_out"]) == (96, 96)
    assert repaired > broken + 10
    unchanged = [name for name, value in model.state_dict().items() if torch.equal(value, good[name])]
    assert not any("running" in name for name in unchanged)
    assert "conv2.weight" in unchanged


def test_without_labels_the_teacher_decides(open_run: Callable[..., Any], network: nn.Module) -> None:
    import dataclasses

    from compress_cli.demo.train import train_original

    model, teacher = train_original(0, epochs=1), train_original(0, epochs=1)
    with torch.no_grad():
        model.bn2.running_var *= 20
    with open_run() as (_, quality):
        quality.data = dataclasses.replace(quality.data, tasks=(), calib_labelled=False)
        assert quality.reestimate_batchnorm_(model)["kept"] is False  # nothing to judge by
        record = quality.reestimate_batchnorm_(model, teacher=teacher)
    assert record["kept"]
    assert set(record["losses_before"]) == {"digit", "parity"}
    assert record["losses_after"]["digit"] < record["losses_before"]["digit"]
