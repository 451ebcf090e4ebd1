"""`compress decompose` end to end on a tiny network: exact budgets in the written files, proof, reload, chains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

import compress_cli
from compress_cli.app import run
from compress_cli.render.curves import Curve, at_shares, lines, picture

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.fc = nn.Linear(24, 12)

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        return self.fc(self.conv2(self.depthwise(x)).relu().mean((2, 3)))
"""
FLAGS = ["--arch", "net.py:Net", "--input-shape", "3x8x8", "--no-bench", "-q"]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    namespace: dict[str, Any] = {}
    exec(NET, namespace)  # the same network as the file's
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = namespace["Net"]().state_dict()
    return state


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: dict[str, torch.Tensor]) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.save(weights, tmp_path / "net.pt")
    return tmp_path


PARAMS = 3 * 16 * 9 + 2 * 16 + 16 * 9 + 16 + 16 * 24 * 9 + 24 + 24 * 12 + 12


def decompose(*more: str) -> int:
    return run(["decompose", "net.pt", *FLAGS, *more])


def report(folder: str = "run") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(folder, "report.json").read_text())
    return document


def test_the_written_model_meets_the_budget_and_reloads_equal(files: Path) -> None:
    assert decompose("--max-params", "50%", "-o", "run") == 0
    found = report()
    model = compress_cli.load("run/model.pt")
    params = sum(parameter.numel() for parameter in model.parameters())
    assert params <= PARAMS // 2
    (achieved,) = found["achieved"]
    assert (achieved["name"], achieved["count"], achieved["asked_count"], achieved["out_of"]) == (
        "params",
        params,
        PARAMS // 2,
        PARAMS,
    )
    assert [(gate["name"], gate["passed"]) for gate in found["gates"]] == [("max-params", True)]
    assert found["proof"]["worst_layer_difference"] < 1e-9
    reasons = {item["name"]: item["reason"] for item in found["skipped"]}
    assert reasons["depthwise"].startswith("depthwise convolution")
    for row in found["layers"]:
        stored = sum(
            tensor.numel()
            for name, tensor in model.state_dict().items()
            if name.startswith(row["name"].removesuffix("weight")) and name.endswith("weight")
        )
        assert row["weights_after"] == stored < row["weights"]
        assert "score" in row["change"]
    sample = torch.randn(3, 3, 8, 8)
    session = onnxruntime.InferenceSession("run/model.onnx", providers=["CPUExecutionProvider"])
    (onnx_output,) = session.run(None, {session.get_inputs()[0].name: sample.numpy()})
    with torch.no_grad():
        assert torch.allclose(model(sample), torch.from_numpy(onnx_output), atol=1e-5)
    stored = torch.load("run/model.pt", weights_only=True)
    assert [plan["method"] for plan in stored["plans"]] == ["alds"]


def test_plan_prints_and_writes_nothing(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(files.iterdir())
    words = ["plan", "net.pt", *FLAGS[:4], "-q", "--method", "alds", "--max-params", "60%", "--json"]
    assert run(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan"]["params_after"] <= 0.6 * PARAMS
    assert {layer["name"] for layer in document["plan"]["layers"]} <= {"conv", "conv2", "fc"}
    assert [path for path in sorted(files.iterdir()) if path.name != "__pycache__"] == before
    assert run(words[:-1]) == 0
    text = capsys.readouterr().out
    assert "the score is no bound of the error" in text
    assert "left alone depthwise" in text


def test_flops_budget_counts_the_traced_model(files: Path) -> None:
    assert decompose("--max-flops", "60%", "--no-export", "-o", "run") == 0
    found = report()
    assert found["complexity_after"]["macs"] <= 0.6 * found["complexity_before"]["macs"]
    assert found["achieved"][0]["count"] == found["complexity_after"]["macs"]


def test_two_budgets_hold_together(files: Path) -> None:
    assert decompose("--max-flops", "70%", "--max-params", "55%", "--no-export", "-o", "run") == 0
    found = report()
    assert found["complexity_after"]["macs"] <= 0.7 * found["complexity_before"]["macs"]
    assert found["complexity_after"]["params"] <= 0.55 * found["complexity_before"]["params"]
    assert all(gate["passed"] for gate in found["gates"])


def test_size_budget_is_that_of_the_onnx_file(files: Path) -> None:
    assert decompose("--max-size", "75%", "-o", "run") == 0
    sizes = {artifact["role"]: artifact["bytes"] for artifact in report()["artifacts"]}
    assert sizes["onnx"] <= 0.75 * sizes["original onnx"]


def test_decompose_then_prune_keeps_both_plans(files: Path) -> None:
    assert decompose("--max-params", "60%", "--no-export", "-o", "small") == 0
    assert run(["prune", "small/model.pt", "--sparsity", "0.5", "--no-export", "-q", "-o", "sparse"]) == 0
    stored = torch.load("sparse/model.pt", weights_only=True)
    assert [plan["method"] for plan in stored["plans"]] == ["alds", "magnitude"]
    model = compress_cli.load("sparse/model.pt")
    small = compress_cli.load("small/model.pt")
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in small.named_parameters()]
    zeros = sum(int((parameter == 0).sum()) for parameter in model.parameters())
    assert zeros >= report("sparse")["achieved"][0]["asked_count"] > 0


def test_prune_then_decompose_and_decompose_twice(files: Path) -> None:
    assert run(["prune", "net.pt", *FLAGS, "--sparsity", "0.3", "--no-export", "-o", "sparse"]) == 0
    assert run(["decompose", "sparse/model.pt", "--max-params", "70%", "--no-export", "-q", "-o", "once"]) == 0
    assert run(["decompose", "once/model.pt", "--max-params", "85%", "--no-export", "-q", "-o", "twice"]) == 0
    stored = torch.load("twice/model.pt", weights_only=True)
    assert [plan["method"] for plan in stored["plans"]] == ["magnitude", "alds", "alds"]
    params = sum(parameter.numel() for parameter in compress_cli.load("twice/model.pt").parameters())
    assert params == report("twice")["complexity_after"]["params"] <= 0.7 * 0.85 * PARAMS
    lost = "were zero, their factors are dense: decompose first and prune the result"
    assert any(lost in text for text in report("once")["warnings"])
    assert not any(lost in text for text in report("twice")["warnings"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs a budget"),
        (["--max-params", "3%"], "--max-params 3% cannot be met: the smallest decomposition of this network has"),
        (["--max-params", "50%", "--schemes", "5"], "schemes must be some of 0, 1, 2, 3"),
        (["--max-params", "50%", "--schemes", "first"], "is no list of numbers"),
        (["--max-params", "50%", "--error", "l1"], "error must be one of"),
        (["--max-params", "50%", "--objective", "mean"], "objective must be one of"),
        (["--max-params", "50%", "--max-groups", "0"], "--max-groups 0 is below 1"),
        (["--max-params", "50%", "--error", "output"], "is measured on images"),
        (["--max-params", "50%", "--method", "pca"], "is measured on images"),
        (["--max-params", "50%", "--method", "svd", "--error", "fro"], "belong to --method alds"),
        (["--max-params", "50%", "--method", "magnitude"], "does not decompose"),
        (["--max-params", "50%", "--ignore", "convolution9*"], "matches no layer"),
        (["--max-size", "50%", "--no-export"], "--max-size needs the ONNX file"),
        (["--max-params", "7MB"], "is not a limit"),
    ],
)
def test_wrong_requests_are_usage_errors(
    files: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert decompose(*flags, "-o", "run", *([] if "--no-export" in flags else ["--no-export"])) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("run").exists()


def test_a_refused_budget_names_one_that_works(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert decompose("--max-params", "3%", "--no-export", "-o", "run") == 2
    fix = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("Fix:"))
    assert decompose("--max-params", fix.split("--max-params ")[1].split("%")[0] + "%", "--no-export", "-o", "run") == 0


@pytest.mark.parametrize("method", ["svd", "svd-energy"])
def test_baselines_meet_the_same_budget(files: Path, method: str) -> None:
    assert decompose("--method", method, "--max-params", "60%", "--no-export", "-o", "run") == 0
    found = report()
    assert found["method"] == method
    assert found["complexity_after"]["params"] <= 0.6 * PARAMS
    assert all(row["change"].startswith("rank") for row in found["layers"])


def test_spectra_and_curves_are_kept_in_the_run_folder(files: Path) -> None:
    assert decompose("--max-params", "60%", "--no-export", "-o", "run") == 0
    assert Path("run/spectra.npz").stat().st_size > 0
    panels = Path("run/decomposition.svg").read_text()
    assert panels.count("<polyline") == panels.count("<circle") == 3
    assert all(f">{name}<" in panels for name in ("conv", "conv2", "fc"))
    assert panels in Path("run/report.html").read_text()


def test_curves_in_numbers() -> None:
    curve = Curve([(0.2, 0.9), (0.4, 0.5), (1.0, 0.0)], (0.4, 0.5))
    assert at_shares(curve) == [None, 0.9, 0.5, 0.5]
    assert lines({"conv": curve}, "score")[-1] == "conv       -  0.9000  0.5000  0.5000  0.5000 at 40%"
    assert lines({}, "score") == []
    assert '<polyline points="40.0' in picture({"conv": curve}, "score")


@pytest.mark.parametrize("how", ["asked for", "large ones"])
def test_linear_layers_are_sliced(files: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    words = ("--max-params", "30%", "--only", "fc", "--only", "conv2", "--no-export")
    assert decompose(*words, "-o", "whole") == 0
    if how == "large ones":
        monkeypatch.setattr("compress_cli.methods.alds.LARGE_SHARE", 24 * 12 / PARAMS)
        assert decompose(*words, "-o", "run") == 0
    else:
        assert decompose(*words, "--linear-groups", "-o", "run") == 0
    whole, plan = (json.loads(Path(folder, "plan.json").read_text()) for folder in ("whole", "run"))
    groups = [{layer["name"]: layer["groups"] for layer in found["layers"]} for found in (whole, plan)]
    assert groups[0].get("fc", 1) == 1 < groups[1]["fc"]
    scores = [max(layer["score"] for layer in found["layers"]) for found in (whole, plan)]
    assert scores[1] < scores[0]
    model = compress_cli.load("run/model.pt")
    assert [type(part).__name__ for part in model.fc] == ["Unflatten", "Conv1d", "Flatten", "Linear"]


@pytest.fixture
def image_folder(files: Path) -> Path:
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    (files / "images").mkdir()
    for index in range(24):
        pixels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(files / "images" / f"{index}.png")
    return files / "images"


@pytest.mark.parametrize("flags", [["--method", "pca"], ["--error", "output", "--objective", "sum"]])
def test_ranks_from_images_and_recovered_decoders(image_folder: Path, flags: list[str]) -> None:
    words = ["--max-params", "60%", "--calib", str(image_folder), "--preprocess", "none", "--no-export", "-o", "run"]
    assert decompose(*flags, *words) == 0
    found = report()
    assert found["complexity_after"]["params"] <= 0.6 * PARAMS
    assert found["proof"]["worst_layer_difference"] < 1e-9
    assert found["recovery"] is not None
    plan = json.loads(Path("run/plan.json").read_text())
    assert plan["options"]["error"] in ("variance", "output")
    model = compress_cli.load("run/model.pt")
    assert sum(parameter.numel() for parameter in model.parameters()) == plan["params_after"]


def test_latency_budget_chooses_measured_forms(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress_cli.methods import layer_timings

    monkeypatch.setattr(layer_timings, "SECONDS_PER_LAYER", 0.01)
    monkeypatch.setattr(layer_timings, "original_ms", lambda path, threads: (2.0, 1.0))

    def timings(model: Any, analysis: Any, threads: int, seed: int) -> dict[str, Any]:
        found = {}
        for table in analysis.tables:
            form = table.form(len(table.forms) // 2)
            found[table.layer.name] = {None: 0.3, form: 0.1}
        return found

    monkeypatch.setattr(layer_timings, "measure_forms", timings)
    assert decompose("--max-latency", "1.4ms", "-o", "run") == 1  # not measured here: a gate without a value fails
    plan = json.loads(Path("run/plan.json").read_text())
    assert plan["quantity"] == "ms"
    assert (plan["total"], plan["budget"]) == (1.0, 0.7)
    assert plan["planned"] <= 0.7
    assert {layer["groups"] for layer in plan["layers"]} == {1}
    assert len(plan["layers"]) == 2
