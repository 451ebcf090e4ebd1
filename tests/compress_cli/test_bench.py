"""`compress bench`: targets, one failing target beside others, JSON, and what is said about the ratio."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from compress_cli.app import run
from compress_cli.benching import TargetReport, _sentences
from compress_cli.errors import UsageError
from compress_cli.targets import parse_targets
from profilers.onnx_cost import GraphCost, GraphLayer
from tests.compress_cli.checkpoint.checkpoint_files import save_torch, weights
from tests.profilers.onnx_files import write_convolution


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("onnx")
    wide, narrow = folder / "wide.onnx", folder / "narrow[bold].onnx"
    return [str(write_convolution(wide, 64, 32)), str(write_convolution(narrow, 2, 32))]


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict, str]:
    code = run(["bench", *arguments, "--json", "--budget", "0.2"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_two_files_here_and_on_a_phone(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, document, _ = bench(capsys, *files, "--target", "cloud-cpu,mobile:snapdragon-8-gen-2")
    assert (code, document["ok"]) == (0, True)
    here, phone = document["targets"]
    assert (here["label"], phone["label"].split(" for")[0]) == ("measured on this host", "predicted")
    assert [row["profile"] for row in here["rows"]] == ["original", "compressed"]
    assert all(row["peak_rss_mb"] > 0 and row["load_ms"] > 0 for row in here["rows"])
    assert here["ratio"] < 1
    assert here["ratio_low"] <= here["ratio"] <= here["ratio_high"]
    assert phone["ratio"] < 1
    assert any("typically within" in note for note in phone["notes"])
    assert phone["layers"][0]["bound"] in ("compute", "memory", "overhead")
    assert [model["macs"] for model in document["models"]] == [64 * 1024 * 27, 2 * 1024 * 27]
    assert document["machine"]["cores"] >= 1


def test_a_failing_target_leaves_the_others_alone(
    files: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "compress.toml"
    line = json.dumps({"device": "board", "threads": 1, "min_ms": 2.5})
    good = json.dumps([sys.executable, "-c", f"print('''{line}''')", "{model}"])
    bad = json.dumps([sys.executable, "-c", "import sys; sys.exit('no board')", "{model}"])
    config.write_text(f"[targets.board]\ncommand = {good}\n[targets.gone]\ncommand = {bad}\n", encoding="utf-8")
    arguments = ["--target", "gone,board", "--config", str(config), "--no-memory"]
    code, document, _ = bench(capsys, *files, *arguments)
    assert (code, document["ok"]) == (0, False)
    gone, board = document["targets"]
    assert "ended with status 1" in gone["failed"]
    assert gone["log"] == "no board"
    assert [row["min_ms"] for row in board["rows"]] == [2.5, 2.5]
    assert board["ratio"] == 1.0
    assert board["rows"][0]["peak_rss_mb"] is None  # never guessed
    code, document, _ = bench(capsys, files[0], "--target", "gone", "--config", str(config))
    assert (code, document["ok"], document["error"]["code"]) == (3, False, 3)


def test_tables_for_people(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *files, "--budget", "0.2", "--no-memory", "--target", "mobile:raspberry-pi-4", "-q"]) == 0
    shown = capsys.readouterr()
    assert "narrow[bold].onnx" in shown.out
    assert "where the time goes" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent.onnx"], 3, "absent.onnx does not exist"),
        (["{0}", "--target", "mobil:x"], 2, "did you mean mobile"),
        (["{0}", "--target", "mobile"], 2, "compress devices lists them"),
        (["{0}", "--target", "mobile:raspberry-pi"], 2, "fits"),
        (["{0}", "--target", "mobile:nokia-3310"], 2, "no device is called"),
        (["{0}", "--target", "adb"], 2, "--binary PATH"),
        (["{0}", "--target", "cloud-cpu:1"], 2, "takes no argument"),
        (["{0}", "--batch", "0"], 2, "--batch '0' is no number of samples"),
        (["{0}", "--threads", "0"], 2, "--threads 0 is too small"),
        (["{0}", "--budget", "-1"], 2, "--budget and --timeout are seconds above 0"),
        ([__file__], 3, "Fix:"),
    ],
)
def test_mistakes(
    arguments: list[str], code: int, message: str, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *[word.format(files[0]) for word in arguments]]) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("target", "title"), [("mnn", "MNN"), ("mobile:litert", "LiteRT"), ("executorch", "ExecuTorch")]
)
def test_runtimes_that_are_not_installed(
    target: str, title: str, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profilers.mobile.registry.missing", lambda runtime: f"{runtime.title} is not there")
    code, document, _ = bench(capsys, *files, "--target", f"{target},mobile:raspberry-pi-4")
    assert (code, document["ok"]) == (0, False)
    assert document["targets"][0]["failed"] == f"{title} is not there"
    assert document["targets"][1]["rows"]
    code, document, _ = bench(capsys, files[0], "--target", target, "--batch", "2")
    assert (code, document["ok"]) == (3, False)
    assert "batch 1" in document["error"]["message"]


def test_a_sweep_over_batches(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, document, _ = bench(capsys, *files, "--no-memory", "--batch", "8,1")
    assert code == 0
    assert [report["target"] for report in document["targets"]] == ["cloud-cpu, batch 1", "cloud-cpu, batch 8"]
    assert [row["batch"] for report in document["targets"] for row in report["rows"]] == [1, 1, 8, 8]
    single, eight = (report["rows"][0] for report in document["targets"])
    assert eight["p50_ms"] > single["p50_ms"]
    assert document["models"][0]["macs"] == 64 * 1024 * 27
    assert run(["bench", files[0], "--batch", "1,x"]) == 2


@pytest.mark.parametrize(
    ("target", "way"),
    [
        ("cuda", "onnxruntime-gpu"),
        ("tensorrt", "TensorRT"),
        ("openvino", "onnxruntime-openvino"),
        ("qnn", "onnxruntime-qnn"),
        ("coreml", "on a Mac"),
    ],
)
def test_providers_that_are_not_installed(
    target: str, way: str, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    code, document, _ = bench(capsys, files[0], "--target", target)
    assert (code, document["ok"]) == (3, False)
    assert "ONNX Runtime has no" in document["error"]["message"]
    assert way in document["error"]["message"]


def test_targets_split_at_commas_but_not_inside_a_description() -> None:
    found = parse_targets(["cloud-cpu,mobile:core=cortex-a76,clock=2.4,cores=4,ssh:pi@board", "local"])
    assert [target.text for target in found] == [
        "cloud-cpu",
        "mobile:core=cortex-a76,clock=2.4,cores=4",
        "ssh:pi@board",
        "local",
    ]
    assert [target.kind for target in found] == ["cloud-cpu", "mobile", "ssh", "cloud-cpu"]


def test_declared_targets_are_checked(tmp_path: Path) -> None:
    config = tmp_path / "compress.toml"
    for text, message in (
        ("[targets.a]\nlabel = 'x'\n", "has no command"),
        ("[targets.a]\ncommand = ['run']\n", "has no {model}"),
        ("[targets.a]\ncommand = ['run', '{model}', '{speed}']\n", "unknown placeholder {speed}"),
        ("[targets", "no valid TOML"),
        ("targets = 3\n", "is no table"),
    ):
        config.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError) as failure:
            parse_targets(["a"], config)
        assert message in failure.value.message
    with pytest.raises(UsageError, match="is not there"):
        parse_targets(["a"], tmp_path / "absent.toml")
    project = tmp_path / "pyproject.toml"
    project.write_text("[tool.compress.targets.board]\ncommand = ['run', '{model}']\n", encoding="utf-8")
    assert parse_targets(["board"], project)[0].command == ("run", "{model}")


def test_other_verbs_ignore_declared_targets(tmp_path: Path) -> None:
    from compress_cli.config import resolve

    config = tmp_path / "compress.toml"
    config.write_text("seed = 3\n[targets.board]\ncommand = ['run', '{model}']\n", encoding="utf-8")
    assert resolve("prune", "model.pt", {"sparsity": "0.5"}, config).seed == 3


def cost(macs: int) -> GraphCost:
    return GraphCost((GraphLayer("a", "Conv", "Convolution", "convolution", macs, 1, 1, 1),), 1, 1, (), ())


def sentence(ratio: float, before: int, after: int, **more: object) -> str:
    report = TargetReport("cloud-cpu", "cloud-cpu", "measured on this host", ratio=ratio, **more)
    (found,) = _sentences([report], [cost(before), cost(after)])
    return found


def test_the_honest_sentence() -> None:
    assert sentence(0.5, 100, 50).endswith("2.00x faster")
    zeros = sentence(1.01, 100, 100)
    assert "no change in speed; both files compute the same MACs: zeros make files smaller" in zeros
    assert "the MACs fell to 50%, but not what takes the time" in sentence(1.0, 100, 50)
    assert "1.25x faster; the MACs fell to 30%" in sentence(0.8, 100, 30)
    assert "1.50x slower" in sentence(1.5, 100, 100)
    assert "not trustworthy" in sentence(0.5, 100, 50, trustworthy=False)
    assert "no change" in sentence(0.9, 100, 90, ratio_low=0.8, ratio_high=1.1)


def test_a_checkpoint_is_no_onnx_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_torch(tmp_path / "w.pt", weights())
    assert run(["bench", str(file)]) == 3
    shown = " ".join(capsys.readouterr().err.split())
    assert "w.pt is not an ONNX file Fix: make one with: compress export" in shown
