"""A run that is killed with SIGKILL at any step and resumed equals the one that was never killed, bit for bit."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress_cli.errors import InputError
from compress_cli.training import finetune
from compress_cli.training.recipe import Recipe
from compress_cli.training.saving import load_state
from compress_cli.training.trainer import STATE, Trainer
from pruners import magnitude
from pruners.masks import Masks

# a state after every step (no minutes between them), so that a kill can come between any two
RECIPE = Recipe(epochs=2, lr=0.05, batch_size=48, ema=0.9, distill=0.5, mixup=0.4, checkpoint_minutes=0.0)


def train(open_run: Callable[..., Any], model: nn.Module, **how: Any) -> dict[str, Any]:
    teacher = copy.deepcopy(model)
    plan = magnitude.plan(magnitude.candidates_in_module(model), magnitude.MagnitudeOptions("0.8"))
    magnitude.apply_(model, plan)
    with open_run(images=144, **how) as (session, quality):
        masks = Masks(model, plan.names)
        return finetune(model, quality, session=session, recipe=RECIPE, constraint=masks, plan=plan, teacher=teacher)


def killed_at(open_run: Callable[..., Any], model: nn.Module, step: int, *, resume: bool, before_save: bool) -> int:
    """Train in a child process that gets SIGKILL at a step, in the middle of it or after its state was saved."""

    def child() -> None:
        name = "_look" if before_save else "save"
        original = getattr(Trainer, name)

        def fatal(self: Trainer, *arguments: Any) -> None:
            original(self, *arguments)
            if self.progress.step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(Trainer, name, fatal)
        train(open_run, model, resume=resume)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(600)
    return process.exitcode or 0


@pytest.mark.forks
@pytest.mark.parametrize(("first", "second"), [(1, 4), (3, 3)])
def test_kill_9_twice_and_resume(open_run: Callable[..., Any], network: nn.Module, first: int, second: int) -> None:
    straight = copy.deepcopy(network)
    record = train(open_run, straight)
    assert killed_at(open_run, copy.deepcopy(network), first, resume=False, before_save=False) == -signal.SIGKILL
    assert killed_at(open_run, copy.deepcopy(network), second, resume=True, before_save=True) == -signal.SIGKILL
    again = copy.deepcopy(network)
    resumed = train(open_run, again, resume=True)
    theirs = straight.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in again.state_dict().items())
    assert [row["loss"] for row in resumed["history"]] == [row["loss"] for row in record["history"]]


def test_the_number_of_worker_processes_changes_nothing(open_run: Callable[..., Any], network: nn.Module) -> None:
    """It is chosen by how fast samples are read, so a resumed run may have another one."""
    found = []
    for workers in (0, 2):
        model = copy.deepcopy(network)
        with open_run(images=96) as (session, quality):
            quality.train._workers_for = lambda samples, chosen=workers: chosen
            finetune(model, quality, session=session, recipe=RECIPE)
        found.append(model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_state_that_cannot_be_written_ends_in_one_error_and_the_last_one_stays(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    real = torch.save
    calls = []

    def full(state: Any, path: Any) -> None:
        calls.append(path)
        real(state, path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(torch, "save", full)
    with open_run() as (session, quality):
        with pytest.raises(InputError, match="no space left"):
            finetune(network, quality, session=session, recipe=RECIPE)
        state = load_state(session.folder.file(STATE))
        assert state is not None
        assert state["progress"]["step"] == 2
        assert sorted(item.name for item in session.folder.file("checkpoints").iterdir()) == ["last.pt"]


def test_an_image_that_vanishes_ends_in_one_error_and_the_last_state_stays(
    open_run: Callable[..., Any], network: nn.Module
) -> None:
    with open_run() as (session, quality):
        original = quality.train._data.dataset

        class Vanishing:
            labels = original.labels
            reads = 0

            def __getitem__(self, index: int) -> Any:
                self.reads += 1
                if self.reads > 200:
                    raise InputError("the image leaf.png is gone", "restore the file")
                return original[index]

        quality.train._data.dataset = Vanishing()
        with pytest.raises(InputError, match=r"leaf\.png is gone"):
            finetune(network, quality, session=session, recipe=RECIPE)
        state = load_state(session.folder.file(STATE))
    assert state is not None
    assert state["progress"]["step"] == 4


def test_a_damaged_state_is_refused(open_run: Callable[..., Any], network: nn.Module, tmp_path: Path) -> None:
    with open_run() as (session, quality):
        finetune(network, quality, session=session, recipe=RECIPE)
        path = session.folder.file(STATE)
    path.write_bytes(path.read_bytes()[:500])
    with (
        open_run(resume=True) as (session, quality),
        pytest.raises(InputError, match=r"last\.pt cannot be read") as caught,
    ):
        finetune(network, quality, session=session, recipe=RECIPE)
    assert "--overwrite" in caught.value.fix
