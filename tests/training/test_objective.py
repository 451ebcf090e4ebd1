"""What a step minimises: distillation of outputs and features, label smoothing, mixup, CutMix; recipe words."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress_cli.data import Batch
from compress_cli.errors import InputError, UsageError
from compress_cli.tasks import L1, Task, classification
from compress_cli.tasks.metrics import TopK
from compress_cli.tasks.task import TaskMismatch
from compress_cli.training import finetune
from compress_cli.training.choosing import Start, choose_recipe
from compress_cli.training.distill import teacher_loss
from compress_cli.training.features import FeaturePoints
from compress_cli.training.mixing import mixed, paste_box
from compress_cli.training.objective import Objective
from compress_cli.training.recipe import Recipe
from compress_cli.training.words import parse_recipe


class Identity(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def batch_of(images: torch.Tensor, target: torch.Tensor) -> Batch:
    return Batch((images,), target, torch.arange(len(images)))


def test_teacher_loss_is_hintons_and_zero_for_equal_outputs() -> None:
    task = classification()[0]
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    soft, wanted = (student / 4).softmax(1), (teacher / 4).softmax(1)
    by_hand = (wanted * (wanted.log() - soft.log())).sum(1).mean() * 16
    torch.testing.assert_close(teacher_loss(task, student, teacher, 4.0), by_hand)
    assert teacher_loss(task, teacher, teacher, 4.0).item() == pytest.approx(0, abs=1e-6)
    regression = Task("depth", loss=L1(), metric="mae")
    assert teacher_loss(regression, torch.zeros(2, 3), torch.ones(2, 3), 4.0).item() == pytest.approx(1.0)


def test_distillation_weighs_both_losses() -> None:
    images, target = torch.randn(8, 5), torch.randint(0, 5, (8,))
    teacher = nn.Linear(5, 5)
    recipe = Recipe(1, 0.1, distill=0.25, temperature=2.0)
    found = Objective.of(classification(), recipe, teacher)(Identity(), batch_of(images, target))
    wanted = 0.75 * F.cross_entropy(images, target) + 0.25 * teacher_loss(
        classification()[0], images, teacher(images), 2.0
    )
    torch.testing.assert_close(found, wanted)
    assert not found.requires_grad  # nothing flows into the teacher


def test_a_full_gpu_is_no_mismatch_of_the_task() -> None:
    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    class Full(TopK):
        count = full

    task = Task("top1", loss=full, metric=Full(1))
    for use in (task.losses, task.count):
        with pytest.raises(InputError, match="GPU's memory") as raised:
            use(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))
        assert not isinstance(raised.value, TaskMismatch)
        assert "--batch-size" in raised.value.fix


def test_label_smoothing_reaches_the_built_in_loss() -> None:
    images, target = torch.randn(8, 5), torch.randint(0, 5, (8,))
    recipe = Recipe(1, 0.1, label_smoothing=0.1)
    found = Objective.of(classification(), recipe, None)(Identity(), batch_of(images, target))
    torch.testing.assert_close(found, F.cross_entropy(images, target, label_smoothing=0.1))


def test_mixup_equals_soft_targets() -> None:
    images, target = torch.randn(8, 5, 1, 1), torch.randint(0, 5, (8,))
    recipe = Recipe(1, 0.1, mixup=0.5)
    network = nn.Flatten()
    torch.manual_seed(3)
    found = Objective.of(classification(), recipe, None)(network, batch_of(images, target))
    torch.manual_seed(3)
    run, other, share = mixed(batch_of(images, target), recipe)
    assert other is not None
    assert 0 < share < 1
    soft = share * F.one_hot(target, 5) + (1 - share) * F.one_hot(other.target, 5)
    torch.testing.assert_close(found, F.cross_entropy(run.inputs[0].flatten(1), soft))


def test_cutmix_pastes_a_box_of_the_stated_share() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        image, share = paste_box(torch.zeros(1, 3, 16, 12), torch.ones(1, 3, 16, 12), float(torch.rand(())))
        assert image.mean().item() == pytest.approx(1 - share)
        inside = image[0, 0].nonzero()
        if len(inside):
            low, high = inside.min(0).values, inside.max(0).values
            assert int((high - low + 1).prod()) == len(inside)  # a full rectangle
    assert mixed(batch_of(torch.zeros(2, 3), torch.zeros(2)), Recipe(1, 0.1, mixup=1.0))[1] is None


def test_features_are_compared_at_the_last_module_of_each_shape(network: nn.Module) -> None:
    teacher = copy.deepcopy(network)
    images = torch.randn(4, 1, 8, 8)
    points = FeaturePoints(network, teacher, (images,))
    assert points.names == ("bn1", "bn3")
    with points.watched():
        network.eval()(images)
        teacher.eval()(images)
        assert points.distance().item() == 0
        with torch.no_grad():
            teacher.bn1.weight *= 2
            teacher.bn1.bias *= 2
        network(images)
        teacher(images)
        doubled = points.distance()
    assert doubled.item() > 0.125  # bn1 is half of the teacher's: (1 - 1/2)^2 of it, over two points
    assert not any(module._forward_hooks for module in [*network.modules(), *teacher.modules()])


def test_narrower_modules_are_left_out(network: nn.Module) -> None:
    from compress_cli.demo.net import two_task_cnn

    assert FeaturePoints(two_task_cnn(4), network, (torch.randn(1, 1, 8, 8),)).names == ()


def test_training_with_everything_at_once(open_run: Callable[..., Any], network: nn.Module) -> None:
    from compress_cli.demo.net import two_task_cnn
    from compress_cli.demo.train import train_original

    teacher = train_original(0, epochs=2)
    words = ["ema=0.9", "mixup=0.2,cutmix=1", "label-smoothing=0.1", "clip_norm=2", "features=0.5", "accumulate=2"]
    words += ["optimizer=adamw", "curve=one-cycle"]
    student = two_task_cnn()
    with open_run(epochs=2, lr=0.003, recipe=words, distill=True) as (session, quality):
        record = finetune(student, quality, session=session, teacher=teacher)
        rows = list(csv.DictReader(session.folder.file("history.csv").open()))
    assert record["history"][1]["loss"] < record["history"][0]["loss"]
    assert (record["optimizer"], record["ema"], record["mixup"], record["accumulate"]) == ("adamw", 0.9, 0.2, 2)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) == record["history"][1]["loss"]
    assert rows[0]["digit"]
    assert rows[1]["digit"] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["emma=0.9"], "not NAME=VALUE"),
        (["lr=0.1"], "its own flag --lr"),
        (["ema"], "not NAME=VALUE"),
        (["ema=fast"], "not a number"),
        (["ema=1.5"], "out of range"),
        (["curve=square"], "is unknown"),
        (["nesterov=maybe"], "neither true nor false"),
    ],
)
def test_wrong_recipe_words(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_recipe(words)


def test_recipe_words_change_the_recipe(open_run: Callable[..., Any]) -> None:
    with open_run(recipe=["momentum=0.95", "nesterov=true", "curve=cosine"]) as (session, _):
        recipe = choose_recipe(session.config, Start(images=192, sparsity=0.9))
    assert (recipe.momentum, recipe.nesterov, recipe.curve) == (0.95, True, "cosine")
