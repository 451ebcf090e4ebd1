"""`compress check`: gates over a finished run, levels, baselines, and what CI services read."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from compress_cli.app import run
from compress_cli.gates import Found, Rule, judge
from compress_cli.quantities import parse_limit
from tests.compress_cli.checkpoint.checkpoint_files import save_torch, weights
from tests.reports import make_report


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "run", **changes: Any) -> Path:
        place = tmp_path / name
        place.mkdir()
        (place / "report.json").write_text(json.dumps(make_report(**changes).to_dict()))
        return place

    return write


def test_all_gates_pass(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(folder()), "--max-size", "25%", "--max-drop", "1.5", "--max-params", "1k"]) == 0
    assert "3 of 3 gates passed" in capsys.readouterr().out


def test_a_failing_gate_comes_first_with_exit_code_1(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["check", str(folder()), "--max-size", "25%", "--max-drop", "0.5", "-v"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 1
    assert "FAILED" in lines[2]
    assert lines[2].startswith("max-drop")
    assert "1.00 points" in lines[2]


def test_passing_gates_are_hidden_unless_verbose(
    folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run(["check", str(folder()), "--max-size", "25%", "--max-drop", "0.5"])
    assert "max-size" not in capsys.readouterr().out


def test_exit_zero_reports_and_passes(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(folder()), "--max-drop", "0.5", "--exit-zero"]) == 0
    assert "FAILED" in capsys.readouterr().out


def test_json_is_one_document(folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(folder()), "--max-drop", "0.5", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    gate = document["gates"][0]
    assert (gate["name"], gate["passed"], gate["value"], gate["bound"]) == ("max-drop", False, 1.0, 0.5)


def test_what_was_not_measured_does_not_pass(folder: Callable[..., Path], tmp_path: Path) -> None:
    place = folder()
    document = json.loads((place / "report.json").read_text())
    document["tasks"] = []
    (place / "report.json").write_text(json.dumps(document))
    assert run(["check", str(place), "--max-drop", "5"]) == 1


def test_baseline_of_another_run(folder: Callable[..., Path]) -> None:
    old, new = folder("old", size=4_000_000), folder("new", size=4_300_000)
    assert run(["check", str(new), "--baseline", str(old), "--max-size", "110%"]) == 0
    assert run(["check", str(new), "--baseline", str(old), "--max-size", "105%"]) == 1


def test_baseline_from_git(folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder()
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (place / "report.json").write_text(json.dumps(make_report(size=5_000_000).to_dict()))
    monkeypatch.chdir(tmp_path)
    assert run(["check", "run", "--baseline", "git:HEAD:run/report.json", "--max-size", "130%"]) == 0
    assert run(["check", "run", "--baseline", "git:HEAD:run/report.json", "--max-size", "110%"]) == 1
    assert run(["check", "run", "--baseline", "git:nope:run/report.json", "--max-size", "110%"]) == 3


def test_gates_from_the_configuration_file(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder()
    (tmp_path / "pyproject.toml").write_text(
        '[tool.compress.gates]\nmax-size = "25%"\n'
        'max-drop = { limit = "0.5", level = "warn", message = "ask the vision team" }\n'
    )
    monkeypatch.chdir(tmp_path)
    assert run(["check", str(place)]) == 0
    shown = capsys.readouterr().out
    assert "warning" in shown
    assert "ask the vision team" in shown
    assert run(["check", str(place), "--max-drop", "0.5"]) == 1, "a flag is an error, whatever the file says"


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ('speed = "1ms"', "unknown gate 'speed'"),
        ('max-size = { limit = "8MB", level = "bad" }', "level 'bad'"),
        ('max-size = { level = "warn" }', "no limit"),
        ('max-size = "8 parsecs"', "is not a limit"),
    ],
)
def test_wrong_gates_are_usage_errors(
    folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gates: str,
    message: str,
) -> None:
    place = folder()
    (tmp_path / "compress.toml").write_text(f"[gates]\n{gates}\n")
    monkeypatch.chdir(tmp_path)
    assert run(["check", str(place)]) == 2
    assert message in capsys.readouterr().err


def test_no_limits_is_a_usage_error(folder: Callable[..., Path]) -> None:
    assert run(["check", str(folder())]) == 2


@pytest.mark.parametrize("content", [None, "", "[]", '{"schema_version": 1}', "not json"])
def test_unreadable_reports_are_input_errors(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert run(["check", str(tmp_path), "--max-size", "1MB"]) == 3
    assert "Fix:" in capsys.readouterr().err


def test_markdown_and_junit(folder: Callable[..., Path], tmp_path: Path) -> None:
    comment, xml = tmp_path / "c.md", tmp_path / "g.xml"
    flags = ["--max-size", "25%", "--max-drop", "0.5", "--markdown", str(comment), "--junit", str(xml)]
    assert run(["check", str(folder()), *flags]) == 1
    assert "| max-drop | at most 0.5 = 0.50 points | 1.00 points | **FAILED** |" in comment.read_text()
    suite = ElementTree.parse(xml).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert suite.find("testcase[@name='max-drop']/failure") is not None
    assert suite.find("testcase[@name='max-size']/failure") is None


def latency_gate(low: float, value: float) -> tuple[str, bool | None]:
    gate = judge(Rule(parse_limit("--max-latency", "ms", "110%")), Found(10.0, value, low))
    return gate.level, gate.passed


def test_latency_fails_only_when_the_interval_excludes_the_limit() -> None:
    assert latency_gate(low=10.0, value=10.9) == ("error", True)
    assert latency_gate(low=10.5, value=11.5) == ("warn", False)
    assert latency_gate(low=11.2, value=11.5) == ("error", False)


def test_a_checkpoint_holds_no_measurements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_torch(tmp_path / "w.pt", weights())
    assert run(["check", str(file), "--max-size", "1MB"]) == 3
    assert "is a checkpoint, which holds no measurements" in capsys.readouterr().err
