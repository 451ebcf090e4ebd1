"""Batch-norm re-estimation: the average over batches, kept only when held-out loss falls, everything else untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compress_cli.recovery import Correspondence
from compress_cli.training.batchnorm import mean_ratio, reestimate_if_better_
from pruners.batchnorm import Original, candidates_, reestimate_


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
        record = quality.reestimate_batchnorm_(model, teacher=quality.original(teacher))
    assert record["kept"]
    assert set(record["losses_before"]) == {"digit", "parity"}
    assert record["losses_after"]["digit"] < record["losses_before"]["digit"]


def seeded(count: int, scale: float = 1.0) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(16, 1, 6, 6, generator=generator) * scale,) for _ in range(count)]


def trained() -> nn.Sequential:
    """Statistics of other images than those at hand: the stored ones are wider."""
    model = net()
    reestimate_(model, seeded(20, 3.0))
    return model


def test_a_network_that_has_not_changed_keeps_its_statistics_where_averages_would_not() -> None:
    model = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tries: list[torch.Tensor] = []

    def losses() -> dict[str, float]:
        tries.append(model[1].running_var.clone())
        return {"a": float((model[1].running_var - before["1.running_var"]).abs().sum()) + (len(tries) == 1)}

    record = reestimate_if_better_(model, seeded(2), losses, original=Original(trained(), seeded(2)))
    assert (record["kept"], record["how"]) == (True, "shift")
    assert (tries[1] < 0.3 * before["1.running_var"]).all(), "the averages forget what the training has seen"
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_statistics_move_as_far_as_the_same_images_say_for_the_channels_that_are_left() -> None:
    """Twice the weights, no bias: means and standard deviations double, whatever images the stored ones are of."""
    original = trained()
    with torch.no_grad():
        original[0].bias.zero_()
    reestimate_(original, seeded(20, 3.0))
    small = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()).eval()
    with torch.no_grad():
        small[0].weight.copy_(2 * original[0].weight[[1, 3]])
        small[0].bias.zero_()
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(small[1], name).copy_(getattr(original[1], name)[[1, 3]])
    kept = Correspondence(keep={"1.running_mean": {0: [1, 3]}})
    state = {name: value.clone() for name, value in original.state_dict().items()}
    answers = iter([{"a": 1.0}, {"a": 0.9}, {"a": 0.5}, {"a": 0.7}])
    before = Original(original, seeded(4))
    record = reestimate_if_better_(small, seeded(4), lambda: next(answers), original=before, removed=kept)
    assert record["how"] == "shift"
    torch.testing.assert_close(small[1].running_var, 4 * state["1.running_var"][[1, 3]], rtol=1e-3, atol=0)
    assert all(torch.equal(value, state[name]) for name, value in original.state_dict().items())


def test_layers_that_do_not_correspond_leave_the_averages() -> None:
    model, answers = net(), iter([{"a": 1.0}, {"a": 0.5}])
    wider = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5))
    before = Original(wider, seeded(2))
    record = reestimate_if_better_(model, seeded(2), lambda: next(answers), original=before)
    assert (record["kept"], record["how"]) == (True, "averages")


def test_half_a_shift_lies_between() -> None:
    model, original = trained(), trained()
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    copied = copy.deepcopy(model)
    found = {
        way: (copied[1].running_mean.clone(), copied[1].running_var.clone())
        for way in candidates_(copied, lambda: [copied(*batch) for batch in seeded(3)], Original(original, seeded(3)))
    }
    reestimate_(model, seeded(3))
    averages, half, shift = found["averages"], found["half a shift"], found["shift"]
    torch.testing.assert_close(averages, (model[1].running_mean, model[1].running_var))
    torch.testing.assert_close(half[0], (averages[0] + shift[0]) / 2)
    torch.testing.assert_close(half[1], (averages[1] * shift[1]).sqrt())


def test_the_shift_starts_from_the_originals_statistics() -> None:
    """Recovery may have written an offset of the layer before into the mean: it must not count twice."""
    original = net()
    reestimate_(original, seeded(3))
    model = copy.deepcopy(original)
    with torch.no_grad():
        model[0].bias += 0.5
        model[1].running_mean += 0.5  # the same function
    stored = model[1].running_mean.clone()
    for way in candidates_(model, lambda: [model(*batch) for batch in seeded(3)], Original(original, seeded(3))):
        if way == "shift":
            torch.testing.assert_close(model[1].running_mean, stored)


def test_after_an_error_all_statistics_are_as_before() -> None:
    original = trained()
    state = {name: value.clone() for name, value in original.state_dict().items()}
    bad = [*seeded(1), (torch.zeros(2, 3, 6, 6),)]
    with pytest.raises(RuntimeError, match="channels"):
        Original(original, bad).of({"1": {}}, {})
    assert all(torch.equal(value, state[name]) for name, value in original.state_dict().items())


def test_layers_that_no_batch_reaches_keep_their_statistics() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = Spare()
    with torch.no_grad():
        model.spare.running_mean.fill_(3.0)
        model.used.running_mean.fill_(3.0)
    reestimate_(model, seeded(2))
    assert float(model.spare.running_mean) == 3.0
    assert abs(float(model.used.running_mean)) < 0.5


def test_the_originals_statistics_are_taken_once_and_put_back() -> None:
    passes: list[int] = []

    class Counted(list[tuple[torch.Tensor, ...]]):
        def __iter__(self) -> Any:
            passes.append(1)
            return super().__iter__()

    network = trained()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    original, answers = Original(network, Counted(seeded(2))), [{"a": 1.0}, {"a": 0.9}, {"a": 0.8}, {"a": 0.7}] * 2
    for _ in range(2):
        reestimate_if_better_(trained(), seeded(2), lambda: answers.pop(0), original=original)
    assert len(passes) == 1
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_an_unchanged_network_is_not_compared_with_itself(
    open_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its statistics cannot have moved, so only averages are worth their two evaluations."""
    from compress_cli import quality as under_test
    from compress_cli.demo.train import train_original

    given: list[Any] = []

    def spy(*_: Any, original: Any, **__: Any) -> dict[str, Any]:
        given.append(original)
        return {"kept": False}

    monkeypatch.setattr(under_test, "reestimate_if_better_", spy)
    model, teacher = train_original(0, epochs=1), train_original(0, epochs=1)
    with open_run() as (_, quality):
        quality.reestimate_batchnorm_(model, teacher=quality.original(teacher))
        with torch.no_grad():
            model.conv2.weight[0] = 0.0
        quality.reestimate_batchnorm_(model, teacher=quality.original(teacher))
    assert [item is None for item in given] == [True, False]
