"""Tasks in YAML and TOML: the same tasks as in Python, and one clear error for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress_cli.errors import InputError
from compress_cli.tasks import CrossEntropy, MeanIoU, TopK, read_task_file

DATA = """
import torch

def train_data():
    return [(torch.zeros(3), {"a": 0, "b": 1})] * 4
"""
YAML = """
data: leaves.py
tasks:
  first: {output: 0, target: a, loss: cross_entropy, metric: top1, max_drop: 2.5}
  mask:  {output: seg, target: b, loss: cross_entropy, ignore_index: 255, metric: miou, weight: 0.5}
"""
TOML = """
data = "leaves.py"
[tasks.first]
output = 0
target = "a"
max_drop = 2.5
[tasks.mask]
output = "seg"
target = "b"
ignore_index = 255
metric = "miou"
weight = 0.5
"""


@pytest.mark.parametrize(("name", "text"), [("t.yaml", YAML), ("t.toml", TOML)])
def test_both_forms_give_the_same_tasks(tmp_path: Path, name: str, text: str) -> None:
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    (tmp_path / "leaves.py").write_text(DATA)
    (tmp_path / name).write_text(text)
    found = read_task_file(str(tmp_path / name))
    first, mask = found.tasks
    assert (first.name, first.output, first.target, first.max_drop, first.weight) == ("first", 0, "a", 2.5, 1.0)
    assert isinstance(first.loss, CrossEntropy)
    assert isinstance(first.metric, TopK)
    assert (mask.output, mask.weight, mask.loss) == ("seg", 0.5, CrossEntropy(ignore_index=255))
    assert mask.metric == MeanIoU(ignore_index=255)
    assert found.train is not None
    assert len(found.train) == 4
    losses = mask.losses({"seg": torch.randn(2, 3, 2, 2)}, {"b": torch.full((2, 2, 2), 255)})
    assert bool(torch.isnan(losses).all())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks = 3", "names no data"),
        ('data = "leaves.py"', "names no tasks"),
        ('data = "leaves.py"\n[tasks.a]\nlos = "l1"', "did you mean loss"),
        ('data = "leaves.py"\n[tasks.a]\nloss = "huber"', "unknown loss 'huber'"),
        ('data = "leaves.py"\n[tasks.a]\nloss = "l1"\nignore_index = 1', "no ignore_index"),
        ('data = "leaves.py"\n[tasks.a]\nweight = "much"', "not a number"),
        ('data = "leaves.py"\nmore = 1\n[tasks.a]', "unknown entry 'more'"),
        ("data = ", "is not valid"),
    ],
)
def test_wrong_files_are_one_clear_error(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "leaves.py").write_text(DATA)
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_task_file(str(tmp_path / "t.toml"))
    assert words in f"{caught.value.message} {caught.value.fix}"


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_task_file(str(tmp_path / "none.yaml"))
