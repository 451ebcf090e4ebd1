"""`compress sweep`: the grid, the Pareto front, shared caches, failures that do not stop it, resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compress_cli.app import run
from compress_cli.combining import Step
from compress_cli.errors import UsageError
from compress_cli.render.html import render_sweep
from compress_cli.sweeping import Point, Result, grid, mark_pareto

NET = """from torch import nn


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 256), nn.Linear(256, 5))
"""


def result(name: str, drop: float | None, size: int | None, error: str = "") -> Result:
    point = Point((Step("magnitude", (("sparsity", name),)),))
    return Result(point, name, error=error, drop=drop, metric=drop, onnx_bytes=size)


def test_grid_gives_each_method_its_budgets() -> None:
    points = grid(["magnitude"], {"sparsity": ["0.5", "0.9"], "max_flops": ["50%"]})
    assert [point.name for point in points] == ["magnitude-sparsity-0.5", "magnitude-sparsity-0.9"]


@pytest.mark.parametrize(("methods", "message"), [(["nope"], "unknown"), (["magnitude"], "no budget")])
def test_grid_refuses_what_makes_no_run(methods: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grid(methods, {"sparsity": [], "max_flops": ["50%"]})


def test_pareto_front_by_hand() -> None:
    rows = [result("a", 0.1, 100), result("b", 0.5, 50), result("c", 0.6, 60), result("d", None, None, "failed")]
    assert [row.pareto for row in mark_pareto(rows)] == [True, True, False, False]


def test_equal_results_are_both_on_the_front() -> None:
    assert [row.pareto for row in mark_pareto([result("a", 0.1, 100), result("b", 0.1, 100)])] == [True, True]


def test_page_without_sizes_has_no_plot() -> None:
    assert "<svg" not in render_sweep([result("a", 0.1, None)])
    assert "<svg" in render_sweep(mark_pareto([result("a", 0.1, 100), result("b", 0.5, 50)]))


def test_sweep_shares_the_original_and_survives_a_failing_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import compress_cli.pipeline as pipeline

    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    weights = {"1.weight": torch.randn(256, 48), "1.bias": torch.zeros(256)}
    torch.save({**weights, "2.weight": torch.randn(5, 256), "2.bias": torch.zeros(5)}, "net.pt")
    exported: list[str] = []
    genuine = pipeline.export_original
    monkeypatch.setattr(pipeline, "export_original", lambda *a: exported.append("once") or genuine(*a))

    words = ["sweep", "net.pt", "--arch", "net.py:net", "--input-shape", "3x4x4", "--no-bench", "-q", "-o", "out"]
    assert run([*words, "--sparsity", "0.5,0.9999,0.8", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert exported == ["once"]
    errors = [bool(row["error"]) for row in document["results"]]
    assert errors == [False, True, False]
    sizes = [row["onnx_bytes"] for row in document["results"]]
    assert sizes[2] < sizes[0]
    assert json.loads(Path("out/sweep.json").read_text()) == document
    assert "<table" in Path("out/sweep.html").read_text()

    assert run([*words, "--sparsity", "0.5"]) == 2
    assert run([*words, "--sparsity", "0.5,0.8", "--resume", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [row["onnx_bytes"] for row in again["results"]] == [sizes[0], sizes[2]]
    assert exported == ["once"], "finished points are not run again"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    weights = {"1.weight": torch.randn(256, 48), "1.bias": torch.zeros(256)}
    torch.save({**weights, "2.weight": torch.randn(5, 256), "2.bias": torch.zeros(5)}, "net.pt")
    return ["sweep", "net.pt", "--arch", "net.py:net", "--input-shape", "3x4x4", "--no-bench", "-q", "-o", "out"]


def test_combinations_share_their_first_steps(project: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first = "alds:max-params=80%,max-groups=1"
    words = [*project, "--combine", f"{first}+magnitude:sparsity=0.5", "--combine", f"{first}+magnitude:sparsity=0.9"]
    assert run([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["error"] for row in rows] == ["", ""]
    assert rows[0]["steps"] == [first, "magnitude:sparsity=0.5"]
    assert rows[1]["onnx_bytes"] < rows[0]["onnx_bytes"]
    steps = [path.name for path in Path("out/steps").iterdir()]
    assert steps == ["alds-params-80%-max-groups-1".replace("%", "pct").replace("max-groups", "groups")]


@pytest.mark.slow
def test_workers_find_what_one_process_finds(project: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    grid_words = ["--method", "svd,magnitude", "--sparsity", "0.9999,0.8", "--max-params", "80%", "--json"]
    assert run([*project, *grid_words]) == 0
    alone = json.loads(capsys.readouterr().out)["results"]
    assert run([*project[:-1], "several", *grid_words, "--workers", "2"]) == 0
    several = json.loads(capsys.readouterr().out)["results"]
    keys = ("name", "error", "onnx_bytes", "params", "macs", "pareto")
    assert [[row[key] for key in keys] for row in several] == [[row[key] for key in keys] for row in alone]
    assert [bool(row["error"]) for row in several] == [False, True, False]


@pytest.mark.slow
def test_a_worker_that_needs_too_much_fails_alone(project: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*project, "--sparsity", "0.5,0.6", "--workers", "2", "--worker-memory", "20MB", "--json"]
    assert run(words) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert not rows[0]["error"], "the first point runs in the command's own process"
    assert "more than --worker-memory 20.00 MB" in rows[1]["error"]


@pytest.mark.parametrize("words", [["--workers", "0"], ["--worker-memory", "50%"], ["--combine", "magnitude:sparsity"]])
def test_flags_that_make_no_sense(project: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*project, "--sparsity", "0.5", *words]) == 2
    assert "Fix" in capsys.readouterr().err


def test_a_budget_that_is_none_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for flag, text in (("--sparsity", "0.5,banana"), ("--max-flops", "50%,2 parsecs")):
        method = "magnitude" if flag == "--sparsity" else "channels"
        words = ["sweep", "no-such-file.pt", "--method", method, flag, text, "-o", str(tmp_path / "sweep")]
        assert run(words) == 2
    assert not (tmp_path / "sweep").exists()
