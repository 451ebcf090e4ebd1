"""TensorBoard as an optional extra, and the recipe's defaults in words."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from compress_cli.config import resolve
from compress_cli.errors import UsageError
from compress_cli.training import finetune, telemetry
from compress_cli.training.recipe import Recipe


def test_the_flag_is_refused_before_anything_is_read_where_the_package_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="package tensorboard, which is not installed") as caught:
        resolve("prune", "gone.pt", {"sparsity": "0.5", "tensorboard": "curves"})
    assert "compress-cli[tensorboard]" in caught.value.fix


class Writer:
    """Stands in for torch's SummaryWriter."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.folder, self.purge_step, self.points, self.closed = folder, purge_step, [], False
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.points.append((name, value, step))

    def flush(self) -> None:
        assert not self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    import sys
    import types

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(telemetry, "check_tensorboard", lambda folder: None)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_curves_hold_what_the_history_holds(
    open_run: Callable[..., Any], network: nn.Module, tmp_path: Any, writers: list[Writer]
) -> None:
    recipe = Recipe(epochs=2, lr=0.05, batch_size=48)
    with open_run(tensorboard=str(tmp_path / "curves")) as (session, quality):
        record = finetune(network, quality, session=session, recipe=recipe)
    (writer,) = writers
    assert (writer.folder, writer.purge_step, writer.closed) == (str(tmp_path / "curves"), None, True)
    losses = [(value, step) for name, value, step in writer.points if name == "epoch/loss"]
    assert losses == [(row["loss"], row["step"]) for row in record["history"]]
    assert {name for name, *_ in writer.points} >= {"epoch/lr", "epoch/images_per_second", "epoch/digit", "loss"}
    steps = [(step, value) for name, value, step in writer.points if name == "loss"]
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sum(value for _, value in steps[:4]) / 4 == pytest.approx(record["history"][0]["loss"], rel=1e-5)


def test_a_resumed_run_drops_the_points_beyond_its_state(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch, writers: list[Writer]
) -> None:
    from compress_cli.training.trainer import Trainer

    recipe = Recipe(epochs=2, lr=0.05, batch_size=48)
    original = Trainer._step

    def dies(self: Trainer, batches: Any) -> None:
        if self.progress.step == 6:
            raise MemoryError
        original(self, batches)

    monkeypatch.setattr(Trainer, "_step", dies)
    with open_run(tensorboard="curves") as (session, quality), pytest.raises(MemoryError):
        finetune(network, quality, session=session, recipe=recipe)
    monkeypatch.setattr(Trainer, "_step", original)
    with open_run(resume=True, tensorboard="elsewhere") as (session, quality):
        finetune(network, quality, session=session, recipe=recipe)
    assert [(writer.purge_step, writer.closed) for writer in writers] == [(None, True), (4, True)]


def test_real_event_files(open_run: Callable[..., Any], network: nn.Module, tmp_path: Any) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra compress-cli[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_run(tensorboard=str(tmp_path / "curves")) as (session, quality):
        record = finetune(network, quality, session=session, recipe=Recipe(epochs=2, lr=0.05, batch_size=96))
    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    found = [(item.step, item.value) for item in events.Scalars("epoch/loss")]
    wanted = [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in record["history"]]
    assert found == wanted


def test_the_recipe_in_words_names_what_is_not_usual() -> None:
    assert Recipe(10, 0.02).words() == (
        "10 epochs of 128 images a step, SGD at learning rate 0.02 (linear), weight decay 0.0001"
    )
    words = Recipe(3, 0.1, curve="one-cycle", ema=0.999, clip_norm=1.0, accumulate=4, randaugment=True).words()
    assert words.endswith("(one-cycle), weight decay 0.0001, clip_norm 1, accumulate 4, ema 0.999, randaugment True")


def test_the_chosen_recipe_is_printed(
    open_run: Callable[..., Any], network: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(epochs=1) as (session, quality):
        session.out.quiet = False
        finetune(network, quality, session=session)
    said = capsys.readouterr().err
    assert "1 epoch of 32 images a step, SGD at learning rate 0.01" in said
    assert "learning rate 0.01 at 32 images a step: " in said
    assert torch.get_num_threads() == 1
