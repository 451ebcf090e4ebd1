"""`--max-size` and a measured `--max-latency` of `--method channels`: cut until the file itself is within the limit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import compress_cli
from compress_cli.app import run
from tests.compress_cli.test_channels_method import NET, report


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET.replace("width=16", "width=64"))
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    exec((tmp_path / "net.py").read_text(), namespace)  # the same network as the file's
    torch.save(namespace["Net"]().state_dict(), tmp_path / "net.pt")
    return tmp_path


def prune(*more: str) -> int:
    flags = ["--arch", "net.py:Net", "--input-shape", "3x8x8", "--no-bench", "--weights", "dense", "-q", "-o", "run"]
    return run(["prune", "net.pt", "--method", "channels", *flags, *more])


def test_the_file_is_as_small_as_asked_and_hardly_smaller(files: Path) -> None:
    assert prune("--max-size", "90KB") == 0
    size = Path("run", "model.onnx").stat().st_size
    assert 0.9 * 90_000 < size <= 90_000
    assert compress_cli.load("run/model.pt").conv.out_channels < 64
    gates = [gate for gate in report()["gates"] if gate["name"] == "max-size"]
    assert gates
    assert all(gate["passed"] for gate in gates)


def test_latency_is_bisected_on_what_is_measured(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(original: Path | None, compressed: Path, **_: Any) -> Any:
        def ms(path: Path) -> float:
            return path.stat().st_size / 1000  # a machine on which time goes by bytes

        ratio = None if original is None else ms(compressed) / ms(original)
        return SimpleNamespace(latencies=(SimpleNamespace(p50_ms=ms(compressed)),), ratio=ratio)

    monkeypatch.setattr("profilers.latency.compare", compare)
    from compress_cli.methods.file_limits import _by_latency
    from compress_cli.quantities import parse_limit
    from pruners.channels import Budget, CostModel, ScoreOptions, analyse, fit, plan, score

    namespace: dict[str, Any] = {}
    exec((files / "net.py").read_text(), namespace)
    torch.manual_seed(0)
    model, inputs = namespace["Net"]().eval(), (torch.randn(1, 3, 8, 8),)
    groups = analyse(model, inputs)

    def cut(budget: Budget) -> Any:
        return fit(model, inputs, groups, lambda g: plan(g, score(model, g, ScoreOptions()), budget))

    loaded: Any = SimpleNamespace(module=model, example_inputs=inputs, input_names=("input",), output_names=None)
    session: Any = SimpleNamespace(config=SimpleNamespace(threads=1))
    limit = parse_limit("--max-latency", "ms", "60%")
    found = _by_latency(limit, session, loaded, cut, Budget(), CostModel(groups).macs)
    share = found.plan.params_after / found.plan.params_before
    assert 0.45 < share < 0.6
    assert found.proof.passed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-size", "200%"], "holds already"),
        (["--max-size", "1KB"], "--max-size"),
        (["--max-size", "60%", "--max-latency", "60%"], "give one"),
    ],
)
def test_limits_that_make_no_sense(
    files: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert prune(*flags) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_plan_made_for_a_size_records_no_other_budget(files: Path) -> None:
    assert prune("--max-size", "60%") == 0
    document = json.loads(Path("run", "plan.json").read_text())
    assert document["options"]["max_macs"] is None
    assert document["options"]["max_params"] > 0
