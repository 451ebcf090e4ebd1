"""`compress prune --method pagcp` end to end on two tasks: limits in the written files, gates, plan, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import compress_cli
from compress_cli.app import run
from compress_cli.errors import UsageError
from compress_cli.methods.pagcp import parse_rises

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

from compress_cli.tasks import Task


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.big = nn.Linear(8, 3)
        self.small = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        x = self.conv2(x).relu()
        return {"kind": self.big(x.mean((2, 3))), "map": self.small(x)}


def network():
    torch.manual_seed(0)
    net = Net().train()
    for _ in range(10):
        net(torch.randn(16, 1, 6, 6))
    return net.eval()


class Pairs(torch.utils.data.Dataset):
    def __init__(self, seed, count):
        self.x = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            out = network()(self.x)
        self.kind, self.map = out["kind"].argmax(1), out["map"].argmax(1)
        self.kind[::9] = 0
        self.map[::7] = 1 - self.map[::7]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], {"kind": self.kind[index], "map": self.map[index]}


def tasks():
    return (
        Task("kind", output="kind", target="kind", loss="cross_entropy", metric="top1"),
        Task("map", output="map", target="map", loss="cross_entropy", metric="accuracy"),
    )


def train_data():
    return Pairs(1, 120)


def test_data():
    return Pairs(2, 60)


def calib_data():
    return Pairs(3, 160)
"""
FLAGS = ["--arch", "task.py:Net", "--input-shape", "1x6x6", "--task", "task.py", "--no-bench", "-q"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pagcp")
    (path / "task.py").write_text(TASK)
    namespace: dict[str, Any] = {}
    exec(TASK, namespace)  # the same network as the file's
    torch.save(namespace["network"]().state_dict(), path / "net.pt")
    return path


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def prune(*more: str, verb: str = "prune") -> int:
    flags = FLAGS if verb == "prune" else [flag for flag in FLAGS if flag != "--no-bench"]
    return run([verb, "net.pt", "--method", "pagcp", *flags, *more])


def report(folder: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(folder, "report.json").read_text())
    return document


MACS = 36 * (9 * 8 + 9 * 64 + 2 * 8) + 24


def test_a_cost_limit_is_met_in_the_written_file_and_every_task_is_gated() -> None:
    assert prune("--max-flops", "60%", "--max-loss-rise", "kind=400%,map=400%", "--epochs", "1", "-o", "both") == 0
    found = report("both")
    achieved = found["achieved"][0]
    assert (achieved["name"], achieved["out_of"]) == ("macs", MACS)
    assert achieved["count"] == found["complexity_after"]["macs"] <= 0.6 * MACS
    gates = {gate["name"]: gate for gate in found["gates"]}
    assert set(gates) == {"max-flops", "max-loss-rise kind", "max-loss-rise map"}
    assert all(gate["passed"] for gate in gates.values())
    assert found["proof"]["passed"] is True
    assert found["verification"] is not None
    model = compress_cli.load("both/model.pt")
    assert model.conv.out_channels < 8 or model.conv2.out_channels < 8
    outputs = model(torch.zeros(2, 1, 6, 6))
    assert outputs["kind"].shape == (2, 3)
    plan = json.loads(Path("both/plan.json").read_text())
    assert plan["method"] == "channels"
    record = plan["pagcp"]
    assert record["samples"] == 160
    assert {row["group"] for row in record["sensitivity"]} == {"conv", "conv2"}
    assert record["check"]["rises"]["map"] == pytest.approx(gates["max-loss-rise map"]["value"] / 100)


def test_limits_on_the_losses_alone_hold_for_every_task() -> None:
    flags = ["--max-loss-rise", "kind=15%,map=5%", "--no-export", "--epochs", "0"]
    assert prune(*flags, "-o", "rise") == 0
    found = report("rise")
    values = {gate["name"]: gate["value"] for gate in found["gates"]}
    assert values["max-loss-rise kind"] <= 15
    assert values["max-loss-rise map"] <= 5
    assert found["complexity_after"]["macs"] < MACS
    assert prune(*flags, "--search", "sweep", "-o", "swept") == 0
    assert all(gate["passed"] for gate in report("swept")["gates"])


def test_limits_are_checked_on_images_that_the_search_did_not_see() -> None:
    """160 images: 64 to search by leave 96, which is enough; the last quarter of all, 40, would not be."""
    flags = ["--max-loss-rise", "10%", "--no-export", "--epochs", "0"]
    assert prune(*flags, "--calib-samples", "64", "-o", "unseen") == 0
    record = json.loads(Path("unseen/plan.json").read_text())["pagcp"]
    assert (record["samples"], record["check"]["samples"], record["check"]["held_out"]) == (64, 96, True)
    gates = report("unseen")["gates"]
    assert {gate["message"] for gate in gates} == {
        "before fine-tuning, on 96 calibration images that the search did not see"
    }
    assert prune(*flags, "-o", "seen") == 0
    record = json.loads(Path("seen/plan.json").read_text())["pagcp"]
    assert (record["samples"], record["check"]["samples"], record["check"]["held_out"]) == (160, 160, False)


def test_a_rise_beyond_the_limit_is_a_failed_gate_that_names_the_task() -> None:
    flags = ["--max-flops", "40%", "--max-loss-rise", "map=0.1%", "--no-export", "--epochs", "0"]
    assert prune(*flags, "-o", "missed") == 1
    found = report("missed")
    gates = {gate["name"]: gate["passed"] for gate in found["gates"]}
    assert gates == {"max-flops": True, "max-loss-rise map": False}
    assert any("the loss of map rises by" in text and "0.1% is allowed" in text for text in found["warnings"])
    assert prune(*flags, "-o", "shrugged", "--exit-zero") == 0


def test_the_reference_meets_a_cost_limit_in_rounds_and_rounding_holds() -> None:
    flags = ["--reference", "--max-flops", "70%", "--round-to", "2", "--no-export", "--epochs", "0"]
    assert prune(*flags, "-o", "reference") == 0
    model = compress_cli.load("reference/model.pt")
    assert model.conv.out_channels % 2 == model.conv2.out_channels % 2 == 0
    plan = json.loads(Path("reference/plan.json").read_text())
    assert plan["pagcp"]["options"]["score"] == "l1"
    assert plan["pagcp"]["options"]["batch_statistics"] is False


def test_the_dry_run_shows_each_groups_sensitivity(capsys: pytest.CaptureFixture[str]) -> None:
    assert prune("--max-loss-rise", "5%", verb="plan") == 0
    text = capsys.readouterr().out
    assert "Sensitivity: each group alone" in text
    assert "(most: " in text
    assert "allowed 5.0%" in text
    assert prune("--max-loss-rise", "5%", "--json", verb="plan") == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["channels"] for row in document["plan"]["pagcp"]["sensitivity"]] == [8, 8]


def test_without_labels_the_outputs_are_the_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torchvision.io import write_png

    (tmp_path / "images").mkdir()
    for number in range(12):
        pixels = torch.randint(0, 256, (1, 6, 6), generator=torch.Generator().manual_seed(number))
        write_png(pixels.to(torch.uint8), str(tmp_path / "images" / f"{number}.png"))
    flags = ["--arch", "task.py:Net", "--input-shape", "1x6x6", "--calib", str(tmp_path / "images"), "-q", "--json"]
    flags += ["--preprocess", "none"]
    assert run(["plan", "net.pt", "--method", "pagcp", *flags, "--max-loss-rise", "kind=500%,map=500%"]) == 0
    record = json.loads(capsys.readouterr().out)["plan"]["pagcp"]
    assert record["check"]["before"] == {"kind": 0.0, "map": 0.0}
    assert record["check"]["holds"] is True
    assert any(value > 0 for value in record["check"]["after"].values())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "needs a limit"),
        (["--max-flops", "50%", "--max-params", "50%"], "drop one"),
        (["--max-flops", "50%", "--sparsity", "0.5"], "--sparsity is for magnitude"),
        (["--max-loss-rise", "kind:3%"], "seg=3%,depth=5%"),
        (["--max-loss-rise", "kid=3%"], "the tasks are kind, map"),
        (["--max-flops", "50%", "--rounds", "3"], "--search sweep"),
        (["--max-flops", "50%", "--score", "taylor"], "fisher, l1 or measured"),
        (["--max-flops", "50%", "--score", "measured", "--search", "sweep"], "--search path"),
        (["--max-flops", "50%", "--scope", "layer"], "pagcp ranks globally"),
        (["--max-flops", "50%", "--reference", "--score", "fisher"], "--reference ranks by l1"),
        (["--max-flops", "1%"], "is the least with these floors"),
        (["--max-flops", "50%", "--min-channels", "some"], "neither a number of channels"),
        (["--max-flops", "50%", "--ignore", "convv*"], "convv*"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(*flags, "--no-export", "-o", str(tmp_path / "refused")) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "refused" / "model.pt").exists()


def test_its_flags_are_refused_by_other_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", "net.pt", "--sparsity", "0.5", "--max-loss-rise", "5%"]) == 2
    assert "--max-loss-rise is for --method pagcp" in capsys.readouterr().err


def test_rises_as_people_write_them() -> None:
    assert parse_rises(None) == {}
    assert parse_rises("5%") == {"": 0.05}
    assert parse_rises("seg=3%, depth=0.05") == {"seg": 0.03, "depth": 0.05}
    assert parse_rises("2%,seg=0%") == {"": 0.02, "seg": 0.0}
    for wrong in ("five", "=3%", "seg=", "seg=-1%", "seg=3%,seg=4%", "3%,4%"):
        with pytest.raises(UsageError):
            parse_rises(wrong)
