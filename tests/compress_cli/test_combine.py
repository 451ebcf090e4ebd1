"""`compress combine`: steps in order, one account against the original, resume, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compress_cli.app import run
from compress_cli.combining import parse_step, parse_steps
from compress_cli.errors import UsageError

NET = """from torch import nn


def net():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )
"""
STEPS = ("alds:max-params=80%,max-groups=1", "channels:max-flops=80%", "magnitude:sparsity=0.5")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    namespace: dict[str, object] = {}
    exec(NET, namespace)
    torch.save(namespace["net"]().state_dict(), "net.pt")  # type: ignore[operator]
    return tmp_path


def words(*steps: str) -> list[str]:
    flags = [word for step in steps for word in ("--step", step)]
    return [
        "combine",
        "net.pt",
        "--arch",
        "net.py:net",
        "--input-shape",
        "3x8x8",
        "--no-bench",
        "-q",
        "-o",
        "out",
        *flags,
    ]


def test_steps_are_parsed() -> None:
    step = parse_step(" channels:max-flops=60%, round-to=8 ")
    assert step.method == "channels"
    assert step.settings == (("max_flops", "60%"), ("round_to", "8"))
    assert step.text == "channels:max-flops=60%,round-to=8"
    assert [item.method for item in parse_steps(["alds:max-params=80%+magnitude:sparsity=0.5"])] == [
        "alds",
        "magnitude",
    ]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["nope:sparsity=0.5"], "unknown"),
        (["magnitude:sparsity"], "no KEY=VALUE"),
        (["magnitude:sparsity=0.5", "channels:max-flops=60%"], "undo"),
        ([" "], "no steps"),
    ],
)
def test_steps_that_make_no_sense_are_refused(steps: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_steps(steps)


@pytest.mark.parametrize("step", ["magnitude:sparsty=0.5", "channels:round-to=many", "magnitude:sparsity=1.5"])
def test_wrong_settings_are_usage_errors(step: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words("alds:max-params=80%", step)) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not Path("out/model.onnx").exists()


def test_the_report_compares_the_end_with_the_beginning(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import compress_cli

    assert run([*words(*STEPS), "--weights", "packed", "--max-size", "60%", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    original = sum(tensor.numel() for tensor in torch.load("net.pt").values())
    assert report["complexity_before"]["params"] == original
    assert report["checkpoint"]["path"].endswith("net.pt")
    assert [step["step"] for step in report["steps"]] == list(STEPS)
    params = [original, *(step["params"] for step in report["steps"])]
    macs = [report["complexity_before"]["macs"], *(step["macs"] for step in report["steps"])]
    assert params[0] > params[1] > params[2] == params[3]
    assert report["seconds"]["earlier steps"] == sum(step["seconds"] for step in report["steps"][:-1]) > 0
    assert macs[0] > macs[1] >= macs[2] / 0.8 >= macs[3]
    state = torch.load("out/model.pt", weights_only=True)
    model = compress_cli.load("out/model.pt", arch="net.py:net")
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == params[3]
    zeros = sum(int((tensor == 0).sum()) for name, tensor in model.state_dict().items() if tensor.ndim > 1)
    assert zeros == report["achieved"][0]["count"] == report["achieved"][0]["asked_count"]
    assert state is not None
    sizes = {artifact["role"]: artifact["bytes"] for artifact in report["artifacts"]}
    assert sizes["original checkpoint"] == Path("net.pt").stat().st_size
    assert sizes["onnx"] == Path("out/model.onnx").stat().st_size
    gate = report["gates"][0]
    assert gate["bound"] == pytest.approx(0.6 * sizes["original onnx"], rel=0.01)
    assert not list(Path("out/steps").glob(".*")), "what only served the comparison is gone"

    assert run(["report", "out"]) == 0
    text = capsys.readouterr().out
    assert "then channel pruning" in " ".join(text.split())
    assert "Steps" in text
    assert run([*words(*STEPS), "--weights", "packed", "--max-size", "60%", "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == report["steps"]


def test_training_starts_by_the_distance_to_the_true_original(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not to what the step before left: two zeros after a strong decomposition are no little damage."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for place in range(5):
            Path(part, str(place)).mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(Path(part, str(place), f"{number}.png"))
    data = ["--data", ".", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--epochs", "1", "--no-export", "--json"]
    found = []
    for steps in (["magnitude:sparsity=0.02"], ["alds:max-params=25%,max-groups=1", "magnitude:sparsity=0.02"]):
        assert run([*words(*steps), *data, "--overwrite"]) == 0
        found.append(json.loads(capsys.readouterr().out)["training"]["lr"])
    assert found[1] > 10 * found[0]


def test_one_step_is_a_plain_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words("magnitude:sparsity=0.5"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] == []
    assert report["achieved"][0]["asked"] == "0.5"
    assert not Path("out/steps").exists()
