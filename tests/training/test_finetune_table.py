"""A slice of the fine-tuning table: its rows, one of them carried out, and not twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.finetune_table import all_rows, main, small_rows

ROOT = Path(__file__).resolve().parents[2]


def test_rows_are_those_of_the_issue() -> None:
    rows = all_rows()
    assert len({row.name for row in rows}) == len(rows) == 2 * 3 * 4 * 2 + 2 * 2 + 3 * 2
    small = small_rows()
    assert {row.kind for row in small} == {row.kind for row in rows} == {"magnitude", "channels", "ALDS"}
    assert {row.mode for row in small} == {row.mode for row in rows}
    assert {row.net for row in small} == {"resnet20"}


@pytest.mark.slow
def test_a_row_is_carried_out_once_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import cifar_resnet
    finally:
        sys.path.remove(str(ROOT / "examples"))
    torch.manual_seed(0)
    torch.save(cifar_resnet.resnet20().state_dict(), tmp_path / "cifar10-resnet20.th")
    for part in ("train", "test"):
        for number in range(10):
            folder = tmp_path / "data" / part / f"class{number}"
            folder.mkdir(parents=True)
            Image.effect_noise((32, 32), 10 * number).convert("RGB").save(folder / "0.png")
    command = ["finetune_table.py", str(tmp_path / "data"), str(tmp_path), "--small", "--epochs", "1"]
    command += ["--rows", "zeros one-shot, distilled", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", [*command, "--results", str(tmp_path / "table.json")])
    main()
    document = json.loads((tmp_path / "table.json").read_text())
    assert document["form"] == {"train_images": 10, "test_images": 10, "epochs": 1, "batch_size": 50, "seed": 0}
    (row,) = document["rows"]
    assert row["row"] == "resnet20 magnitude 90% zeros one-shot, distilled"
    assert row["command"].startswith("compress prune CHECKPOINTS/cifar10-resnet20.th --arch examples/cifar_resnet.py")
    assert "--data CIFAR10 " in row["command"]
    assert (row["images"], row["steps"], row["distilled"], row["seed"]) == (10, 1, True, 0)
    assert row["achieved"][0]["count"] == 241502
    assert set(row["scores"]) >= {"original", "pruned", "final"}
    capsys.readouterr()
    main()
    assert capsys.readouterr().out == ""
