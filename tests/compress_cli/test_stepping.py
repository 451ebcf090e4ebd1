"""`prune --steps N`: equal shares, training after each step, one account against the original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import compress_cli
from compress_cli.app import run
from compress_cli.config import resolve
from compress_cli.errors import UsageError
from compress_cli.stepping import steps_of
from tests.compress_cli.test_channels_method import files  # noqa: F401

FLAGS = ["--method", "channels", "--arch", "net.py:Net", "--input-shape", "3x8x8", "--no-bench", "--no-export", "-q"]


def test_shares_multiply_to_what_was_asked_and_never_to_more() -> None:
    config = resolve("prune", "net.pt", {"method": "channels", "max_flops": "50%", "data": "d", "epochs": 2})
    steps = steps_of(config, 3)
    assert len(steps) == 3
    assert all(dict(step.settings)["epochs"] == "2" for step in steps)
    share = float(dict(steps[0].settings)["max_flops"].removesuffix("%")) / 100
    assert 0.4999 < share**3 <= 0.5


@pytest.mark.parametrize(
    ("more", "count", "words"),
    [
        ({"max_flops": "50%"}, 1, "no row of steps"),
        ({"max_flops": "1GMACs"}, 2, "needs a share"),
        ({}, 2, "shares out"),
        ({"max_flops": "50%", "data": "d"}, 2, "trains after each step"),
        ({"method": "magnitude", "sparsity": "0.5"}, 2, "not for magnitude"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(more: dict[str, object], count: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        steps_of(resolve("prune", "net.pt", {"method": "channels", **more}), count)


def test_two_steps_end_at_the_budget_of_the_original(files: Path) -> None:  # noqa: F811
    assert run(["prune", "net.pt", *FLAGS, "--max-flops", "50%", "--steps", "2", "-o", "run"]) == 0
    report = json.loads(Path("run", "report.json").read_text())
    before, after = report["complexity_before"]["macs"], report["complexity_after"]["macs"]
    assert 0.3 * before < after <= 0.5 * before
    model = compress_cli.load("run/model.pt")
    assert model.conv.out_channels < 16
    steps = [path for path in Path("run", "steps").iterdir() if not path.name.startswith(".")]
    assert len(steps) == 1
    halfway = compress_cli.load(steps[0] / "model.pt")
    assert model.conv.out_channels * model.conv2.out_channels < halfway.conv.out_channels * halfway.conv2.out_channels
