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

from compress_cli.data.folders import class_folder
from compress_cli.data.preprocess import Preprocess
from compress_cli.data.sources import images_split
from compress_cli.errors import InputError
from compress_cli.tasks import classification
from compress_cli.training import finetune
from compress_cli.training.recipe import Recipe
from compress_cli.training.saving import STATE, load_state
from compress_cli.training.trainer import Trainer
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


@pytest.mark.forks
def test_a_disk_that_refuses_more_ends_in_one_error_and_the_run_goes_on_later(
    open_run: Callable[..., Any], network: nn.Module, tmp_path: Path
) -> None:
    """The operating system's own refusal, in a child: no file may grow beyond 1,000 bytes once a state was saved."""

    def child() -> None:
        import resource

        original = Trainer.save

        def then_full(self: Trainer) -> None:
            original(self)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

        Trainer.save = then_full  # type: ignore[method-assign]
        try:
            train(open_run, network)
        except InputError as error:
            (tmp_path / "said").write_text(str(error))

    straight = copy.deepcopy(network)
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(600)
    assert "cannot write" in (tmp_path / "said").read_text()
    folder = tmp_path / "run" / "checkpoints"
    assert [item.name for item in folder.iterdir()] == ["last.pt"]
    state = load_state(folder / "last.pt")
    assert state is not None
    assert state["progress"]["step"] == 1
    record = train(open_run, network, resume=True)
    assert record["steps"] == 6
    train(open_run, straight)
    assert all(torch.equal(value, straight.state_dict()[name]) for name, value in network.state_dict().items())


def image_tree(folder: Path, side: int) -> Path:
    from PIL import Image

    for number in range(16):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((side, side), 50).convert("RGB").save(place / f"{number:02}.png")
    return folder


@pytest.mark.parametrize(("side", "kept"), [(72, "read on demand"), (16, "in memory")])
def test_an_image_file_that_is_removed_between_epochs(
    open_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, kept: str
) -> None:
    """Files that are read in every epoch are missed, with the state of the last epoch; decoded ones are not."""
    images = class_folder(image_tree(tmp_path / "images", side))
    preprocess = Preprocess("none", (side, side), side, (0.5,) * 3, (0.25,) * 3)
    recipe = Recipe(epochs=2, lr=0.01, batch_size=8)
    lost = images.files[3]
    content = lost.read_bytes()

    def tune(**how: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        with open_run(**how) as (session, quality):
            object.__setattr__(quality.data, "train", images_split(images, preprocess, training=True))
            object.__setattr__(quality.data, "test", None)
            object.__setattr__(quality.data, "tasks", classification(2))
            return finetune(model, quality, session=session, recipe=recipe)

    original = Trainer._close_epoch

    def then_lost(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        lost.unlink(missing_ok=True)

    monkeypatch.setattr(Trainer, "_close_epoch", then_lost)
    if kept == "in memory":
        assert tune()["steps"] == 4
        return
    with pytest.raises(InputError, match=rf"{lost.name} is gone"):
        tune()
    state = load_state(tmp_path / "run" / STATE)
    assert state is not None
    assert state["progress"]["step"] == 2
    lost.write_bytes(content)
    monkeypatch.setattr(Trainer, "_close_epoch", original)
    assert [row["epoch"] for row in tune(resume=True)["history"]] == [1, 2]


def test_states_are_saved_every_so_many_steps(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    original = Trainer.save

    def noted(self: Trainer) -> None:
        saved.append(self.progress.step)
        original(self)

    monkeypatch.setattr(Trainer, "save", noted)
    recipe = Recipe(epochs=2, lr=0.01, batch_size=16, checkpoint_steps=2)
    with open_run(images=80) as (session, quality):
        finetune(network, quality, session=session, recipe=recipe)
    assert saved == [2, 4, 5, 7, 9, 10]  # five steps an epoch; the end of each is saved too


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
