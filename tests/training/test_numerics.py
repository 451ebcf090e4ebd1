"""Precision, loss scaling, compilation, and a step that never waits for its device."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress_cli.data.augment import Augmentation
from compress_cli.data.folders import class_folder
from compress_cli.data.preprocess import Preprocess
from compress_cli.data.splits import MemoryImages
from compress_cli.tasks import classification
from compress_cli.training import finetune
from compress_cli.training.modes import choose_sparsifier
from compress_cli.training.numerics import Numerics
from compress_cli.training.optimizers import make_optimizer
from compress_cli.training.recipe import Recipe
from compress_cli.training.trainer import Trainer
from pruners import magnitude
from pruners.masks import Masks
from pruners.schedules import CubicSchedule

CPU, META = torch.device("cpu"), torch.device("meta")


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


@pytest.fixture
def images(tmp_path: Path) -> MemoryImages:
    """32 colour images of 8x8 in two classes, kept in memory."""
    for number in range(32):
        folder = tmp_path / "images" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8), 40 + 80 * (number % 2)).convert("RGB").save(folder / f"{number:02}.png")
    preprocess = Preprocess("none", (8, 8), 8, (0.5,) * 3, (0.25,) * 3)
    return MemoryImages(class_folder(tmp_path / "images"), preprocess, Augmentation.standard(3, 8))


class Waits(TorchDispatchMode):
    """Notes what would stop the host until a GPU is done: values read from the device, tensors sent to it."""

    READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {item.device for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor) and item.dim()}
        made = {item.device for item in tree_leaves(result) if isinstance(item, torch.Tensor)}
        name = func.overloadpacket.__name__
        if (name in self.READS and META in given) or (CPU in given and META in made):
            self.found.append(name)
        return result


MODES = [
    ("one-shot", {"clip_norm": 1.0, "ema": 0.9, "accumulate": 2}),
    ("one-shot", {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "optimizer": "adamw"}),
    ("gradual", {"distill": 0.5, "features": 0.5}),
    ("st3", {"nesterov": True}),
    ("acdc", {}),
]


@pytest.mark.parametrize(("mode", "words"), MODES)
def test_a_step_reads_nothing_from_the_device_and_sends_nothing_to_it(
    open_run: Callable[..., Any], images: MemoryImages, mode: str, words: dict[str, Any]
) -> None:
    """On the meta device, whose tensors have no values: whatever needs one raises or is noted."""
    network = small_net()
    plan = magnitude.plan(magnitude.candidates_in_module(network), magnitude.MagnitudeOptions("0.5"))
    teacher = copy.deepcopy(network).to(META).eval()
    masks = Masks(network.to(META), plan.names)
    recipe = Recipe(epochs=100, lr=0.1, batch_size=16, **words)
    list(images.batches([range(32)], device=CPU))  # decoded before
    with open_run() as (session, quality):
        quality.device = META
        object.__setattr__(quality.data, "train", images)
        object.__setattr__(quality.data, "tasks", classification(2))
        ramp = CubicSchedule(0.0, 0.5, 50, 100)  # the weights are not ranked anew in the steps watched
        sparsifier = choose_sparsifier(network, masks, plan, mode, 200, ramp)
        trainer = Trainer(network, quality, recipe, session, sparsifier=sparsifier, teacher=teacher)
        network.train()
        batches = images.batches(trainer._pieces(0), device=META, epoch=0)
        with trainer.objective.watched():
            trainer._step(batches)  # the first one decodes, sends the data set, makes constants
            with Waits() as waits:
                trainer._step(batches)
    assert waits.found == []
    assert trainer.progress.step == 2


def test_what_the_test_above_looks_for_is_found() -> None:
    with Waits() as waits:
        torch.zeros(3).to(META)
        torch.zeros(3, device=META) + 1
    assert waits.found == ["_to_copy"]
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros((), device=META).item()


def test_images_on_a_device_are_those_in_memory(images: MemoryImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU on the CPU: a resident store that is another object than the decoded pixels."""
    usual = list(images.batches([[3, 1], [30]], device=CPU, epoch=4, seed=2))
    assert images._pixels is not None
    monkeypatch.setattr(MemoryImages, "_on", lambda self, device: self._pixels.clone())
    for found, wanted in zip(images.batches([[3, 1], [30]], device=CPU, epoch=4, seed=2), usual, strict=True):
        assert torch.equal(found.inputs[0], wanted.inputs[0])
        assert torch.equal(found.target, wanted.target)
        assert torch.equal(found.positions, wanted.positions)
    sent = next(iter(images.batches([[3, 1]], device=META, epoch=4)))
    assert (sent.inputs[0].device, sent.target.device, sent.inputs[0].shape) == (META, META, (2, 3, 8, 8))


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_16_bit_training_follows_float32(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch, precision: str, tolerance: float
) -> None:
    scaler = torch.amp.GradScaler  # it begins so high that the first steps of a new network are left out
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, init_scale=256.0, **k))

    def train(how: str) -> tuple[nn.Module, dict[str, Any]]:
        model = copy.deepcopy(network)
        recipe = Recipe(epochs=1, lr=0.01, batch_size=48, precision=how)  # type: ignore[arg-type]
        with open_run() as (session, quality):
            record = finetune(model, quality, session=session, recipe=recipe)
        return model, record

    (exact, plain), (rounded, record) = train("fp32"), train(precision)
    assert plain["precision"].startswith("float32")
    assert record["precision"].startswith({"bf16": "bfloat16", "fp16": "float16"}[precision])
    assert record["history"][0]["loss"] == pytest.approx(plain["history"][0]["loss"], rel=tolerance)
    assert any(not torch.equal(a, b) for a, b in zip(exact.parameters(), rounded.parameters(), strict=True))
    assert all(weight.dtype is torch.float32 for weight in rounded.parameters())


def test_a_step_whose_scaled_gradients_overflow_is_left_out_and_the_scale_halved() -> None:
    numerics = Numerics(CPU, "fp16")
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    begin = numerics.state_dict()["scale"]

    def step(factor: float) -> None:
        optimizer.zero_grad()
        numerics.backward((weight * factor).sum())
        numerics.unscale_(optimizer)
        numerics.step(optimizer)

    step(1e38)
    assert weight.tolist() == [1.0, 1.0]
    assert numerics.state_dict()["scale"] == begin / 2
    step(1.0)
    assert weight.tolist() == [0.5, 0.5]  # 1 - 0.5 * 1: the gradient's true size


def test_momentum_is_zero_after_a_fused_first_step_that_is_left_out() -> None:
    """On a CPU with the optimiser of a GPU."""
    layer = nn.Linear(64, 64)
    recipe = Recipe(epochs=1, lr=0.1, batch_size=2)
    fused = make_optimizer(layer, recipe, torch.device("cuda"))
    same = copy.deepcopy(layer)
    plain = make_optimizer(same, recipe, CPU)
    assert fused.defaults["fused"]
    assert not plain.state
    for optimizer, network in ((fused, layer), (plain, same)):
        network(torch.ones(2, 64)).sum().backward()
        if optimizer is fused:
            fused.found_inf = torch.ones(())  # type: ignore[attr-defined]  # as GradScaler hands it over
            fused.step()
            assert not any(fused.state[weight]["momentum_buffer"].any() for weight in layer.parameters())
            fused.found_inf = None  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.step()
    for mine, theirs in zip(layer.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_seconds_include_what_the_device_has_still_to_do(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._look

    def slow(self: Trainer, made: int) -> None:
        time.sleep(0.5)
        original(self, made)

    monkeypatch.setattr(Trainer, "_look", slow)
    monkeypatch.setattr(Numerics, "look_every", 25)  # more than an epoch's steps
    with open_run() as (session, quality):
        record = finetune(network, quality, session=session, recipe=Recipe(epochs=1, lr=0.01, batch_size=48))
    assert record["seconds"] > 0.5
    assert record["history"][0]["seconds"] == record["seconds"]


def test_the_loss_scale_is_saved_and_restored(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=2, lr=0.02, batch_size=48, precision="fp16")
    original_init = Numerics.__init__

    def eager_to_grow(self: Numerics, *arguments: Any) -> None:
        original_init(self, *arguments)
        self._scaler.set_growth_interval(3)  # within the run

    monkeypatch.setattr(Numerics, "__init__", eager_to_grow)
    straight, broken, again = (copy.deepcopy(network) for _ in range(3))
    scales = []
    original = Trainer._step

    def watched(self: Trainer, batches: Any) -> None:
        original(self, batches)
        scales.append(self.numerics.state_dict()["scale"])

    monkeypatch.setattr(Trainer, "_step", watched)
    with open_run() as (session, quality):
        finetune(straight, quality, session=session, recipe=recipe)
    whole = list(scales)
    scales.clear()

    def dies(self: Trainer, batches: Any) -> None:
        if self.progress.step == 5:
            raise MemoryError
        watched(self, batches)

    monkeypatch.setattr(Trainer, "_step", dies)
    with open_run() as (session, quality), pytest.raises(MemoryError):
        finetune(broken, quality, session=session, recipe=recipe)
    scales.clear()
    monkeypatch.setattr(Trainer, "_step", watched)
    with open_run(resume=True) as (session, quality):
        finetune(again, quality, session=session, recipe=recipe)
    assert len(set(whole)) > 1
    assert scales == whole[4:]  # it goes on after epoch 1, four steps in
    theirs = straight.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in again.state_dict().items())


def test_a_compiled_network_trains_to_the_same_weights(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through Dynamo and AOTAutograd; the code generator behind them is PyTorch's own business."""
    real = torch.compile
    seen = []

    def without_a_code_generator(module: nn.Module) -> Any:
        seen.append(module)
        return real(module, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_a_code_generator)
    plain, compiled = copy.deepcopy(network), copy.deepcopy(network)
    recipe = Recipe(epochs=1, lr=0.02, batch_size=48, accumulate=2)
    with open_run() as (session, quality):
        finetune(plain, quality, session=session, recipe=recipe)
    with open_run(compile=True) as (session, quality):
        record = finetune(compiled, quality, session=session, recipe=recipe)
        assert session.warnings == []
    assert seen == [compiled]
    assert record["compiled"] is True
    for (name, mine), theirs in zip(compiled.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_without_a_compiler_training_goes_on_and_says_so(
    open_run: Callable[..., Any], network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.compile

    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda module: real(module, backend=backend))
    plain, tried = copy.deepcopy(network), copy.deepcopy(network)
    recipe = Recipe(epochs=1, lr=0.02, batch_size=96)
    with open_run() as (session, quality):
        finetune(plain, quality, session=session, recipe=recipe)
    with open_run(compile=True) as (session, quality):
        record = finetune(tried, quality, session=session, recipe=recipe)
        assert any("cannot be compiled here" in line and "C++ compiler" in line for line in session.warnings)
    assert record["compiled"] is False
    theirs = plain.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in tried.state_dict().items())
