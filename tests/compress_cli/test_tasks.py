"""Tasks: losses per sample, missing targets, additive metrics, selection of outputs, task files and their errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from compress_cli.errors import InputError, UsageError
from compress_cli.tasks import (
    L1,
    Accuracy,
    BinaryCrossEntropy,
    Cosine,
    CrossEntropy,
    MeanError,
    MeanIoU,
    MeanSquared,
    SmoothL1,
    Task,
    TaskMismatch,
    TopK,
    mean_present,
    read_task_file,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_cross_entropy_of_images_equals_torch_and_leaves_ignored_pixels_out() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 5, generator=generator)
    target = torch.randint(0, 4, (3, 5, 5), generator=generator)
    target[0, :2] = -100
    target[2] = -100  # no target at all
    losses = CrossEntropy()(logits, target)
    assert losses[0].item() == pytest.approx(F.cross_entropy(logits[:1], target[:1]).item(), rel=1e-6)
    assert losses[1].item() == pytest.approx(F.cross_entropy(logits[1:2], target[1:2]).item(), rel=1e-6)
    assert torch.isnan(losses[2])


def test_missing_targets_pass_no_gradient_and_a_diverged_sample_is_infinite() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    mean_present(CrossEntropy()(logits, torch.tensor([1, -100, 2]))).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert int(torch.count_nonzero(logits.grad[1])) == 0
    broken = torch.full((2, 4), float("nan"))
    assert torch.isinf(mean_present(CrossEntropy()(broken, torch.tensor([1, 2]))))
    assert mean_present(torch.full((3,), float("nan"))).item() == 0


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (MeanSquared(), F.mse_loss),
        (L1(), F.l1_loss),
        (SmoothL1(), F.smooth_l1_loss),
        (BinaryCrossEntropy(), F.binary_cross_entropy_with_logits),
    ],
)
def test_elementwise_losses_equal_torch(loss: object, reference: object) -> None:
    output, target = torch.randn(4, 2, 3), torch.rand(4, 2, 3)
    target[1] = float("nan")
    losses = loss(output, target)  # type: ignore[operator]
    assert torch.isnan(losses).tolist() == [False, True, False, False]
    keep = [0, 2, 3]
    assert losses[keep].mean().item() == pytest.approx(
        reference(output[keep], target[keep]).item(),
        rel=1e-5,  # type: ignore[operator]
    )


def test_cosine_loss_of_parallel_orthogonal_and_opposite_normals() -> None:
    target = torch.tensor([[1.0, 0.0, 0.0]]).repeat(3, 1).view(3, 3, 1, 1)
    output = torch.tensor([[2.0, 0, 0], [0, 3.0, 0], [-1.0, 0, 0]]).view(3, 3, 1, 1)
    torch.testing.assert_close(Cosine()(output, target), torch.tensor([0.0, 1.0, 2.0]))


def test_metrics_add_up_over_any_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(30, 5, generator=generator), torch.randint(0, 5, (30,), generator=generator)
    target[3] = -100
    for metric in (TopK(), TopK(2), Accuracy()):
        whole = metric.count(logits, target)
        parts = sum(metric.count(a, b) for a, b in zip(logits.split(7), target.split(7), strict=True))
        assert torch.equal(whole, parts)
    known = target != -100
    right = (logits.argmax(1) == target)[known].float().mean().item()
    assert TopK().value(TopK().count(logits, target)) == pytest.approx(100 * right)
    assert TopK().value(torch.zeros(2)) != TopK().value(torch.zeros(2))  # NaN: nothing was counted


def test_mean_iou_by_hand() -> None:
    prediction = torch.tensor([[[0, 0], [1, 1]]])
    target = torch.tensor([[[0, 1], [1, -100]]])
    logits = F.one_hot(prediction, 3).permute(0, 3, 1, 2).float()
    # class 0: 1 of 2, class 1: 1 of 2, class 2 is never named
    assert MeanIoU().value(MeanIoU().count(logits, target)) == pytest.approx(50.0)


def test_errors_and_binary_accuracy_by_hand() -> None:
    output, target = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([[0.0], [4.0], [float("nan")]])
    assert MeanError().value(MeanError().count(output, target)) == pytest.approx(1.5)
    assert MeanError(2).value(MeanError(2).count(output, target)) == pytest.approx(2.5**0.5)
    logits = torch.tensor([[1.0], [-1.0], [2.0]])
    assert Accuracy().value(Accuracy().count(logits, torch.tensor([1, 1, 1]))) == pytest.approx(200 / 3)


def test_outputs_and_targets_are_selected_by_name_and_index() -> None:
    outputs = {"logits": torch.zeros(2, 3), "aux": [torch.ones(2, 4), torch.ones(2, 5)]}
    assert Task("a").select_output(outputs).shape == (2, 3)
    assert Task("a", output="aux_1").select_output(outputs).shape == (2, 5)
    assert Task("a", output=-1).select_output(outputs).shape == (2, 5)
    with pytest.raises(TaskMismatch, match="no output 'seg'") as caught:
        Task("a", output="seg").select_output(outputs)
    assert "logits, aux_0, aux_1" in caught.value.fix
    assert Task("a", target=1).select_target([1, 2]) == 2
    with pytest.raises(TaskMismatch, match=r"no target 'depth' \(there is: seg\)"):
        Task("a", target="depth").select_target({"seg": 1})


def test_a_loss_that_is_no_number_per_sample_is_refused() -> None:
    task = Task("a", loss=lambda output, target: F.cross_entropy(output, target))
    with pytest.raises(TaskMismatch, match="has shape") as caught:
        task.losses(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert "reduction='none'" in caught.value.fix
    with pytest.raises(TaskMismatch, match="cannot compare output"):
        Task("a").losses(torch.zeros(2, 3), torch.tensor([0, 7]))
    with pytest.raises(UsageError, match="unknown loss 'hinge'"):
        Task("a", loss="hinge")
    with pytest.raises(UsageError, match="unknown metric 'f1'"):
        Task("a", metric="f1")


def test_the_example_task_file() -> None:
    file = read_task_file(str(EXAMPLES / "two_task.py"))
    assert [task.name for task in file.tasks] == ["digit", "parity"]
    assert (len(file.train), len(file.test), file.calib) == (1438, 359, None)
    image, target = file.train[7]
    assert image.shape == (1, 8, 8)
    assert int(target["parity"]) == -100


BROKEN = {
    "tasks = 3\ndef train_data(): return [1]": "defines no function tasks",
    "def tasks(): return ()\ndef train_data(): return [1]": "must return a tuple of",
    "def tasks(): return 1/0\ndef train_data(): return [1]": r"tasks\(\) raised ZeroDivisionError.*line 1",
    "x = 1": "defines no data",
    "import nonexistent_module": "cannot be imported",
    "def f(:": "syntax error",
    "from compress_cli.tasks import Task\ndef tasks(): return Task('a')\ndef train_data(): return []": "empty data set",
    "from compress_cli.tasks import Task\ndef tasks(): return Task('a'), Task('a')\ndef test_data(): return [1]": "two",
    "from compress_cli.tasks import Task\ndef tasks(): return Task('a')\ndef test_data(): return iter([1])": "not a",
}


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_broken_task_files_say_what_is_wrong(tmp_path: Path, text: str) -> None:
    path = tmp_path / "task.py"
    path.write_text(text)
    with pytest.raises(InputError, match=BROKEN[text]) as caught:
        read_task_file(str(path))
    assert caught.value.fix
    assert "--arch" not in caught.value.message + caught.value.fix


def test_a_missing_task_file_is_named() -> None:
    with pytest.raises(InputError, match=r"--task.*nowhere\.py does not exist"):
        read_task_file("nowhere.py")
