"""Places that cannot be written, full disks, two runs in one folder; and what stdout and stderr carry."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress_cli.app import run
from compress_cli.checkpoint import read_tensors
from compress_cli.methods import method_named
from compress_cli.rundir import RunFolder
from tests.compress_cli.checkpoint.checkpoint_files import save_torch, weights, write_net
from tests.compress_cli.hard_runs import FINISHED, Runner
from tests.compress_cli.places import files_of_at_most, names, without_privileges

HALF = ("--sparsity", "0.5")


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(tmp_path, capsys)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_torch(tmp_path / "w.pt", weights())


def test_an_output_under_a_file(runner: Runner, file: Path) -> None:
    runner.out = file / "run"
    outcome = runner.prune(file, *HALF)
    assert outcome.code == 3
    assert f"cannot write into the output folder {file / 'run'}: Not a directory" in outcome.message
    assert "-o DIR" in outcome.message


def test_an_output_that_is_a_file(runner: Runner, file: Path, tmp_path: Path) -> None:
    runner.out = tmp_path / "note.txt"
    runner.out.write_text("mine", encoding="utf-8")
    code = run(["prune", str(file), *HALF, "--no-export", "-o", str(runner.out), "--json"])
    document = json.loads(runner.capsys.readouterr().out)
    assert code == 3
    assert "File exists" in document["error"]["message"]
    assert runner.out.read_text(encoding="utf-8") == "mine"


def test_an_unwritable_folder(runner: Runner, file: Path, tmp_path: Path) -> None:
    runner.prune(file, *HALF)  # whatever is imported on first use
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    runner.out = locked / "run"
    closed = [path for path in (tmp_path, *tmp_path.parents) if not path.stat().st_mode & 0o001]
    with without_privileges(*closed):
        outcome = runner.prune(file, *HALF)
    assert outcome.code == 3
    assert f"cannot write into the output folder {locked / 'run'}: Permission denied" in outcome.message
    assert names(locked) == []


@pytest.mark.parametrize("size", [50_000, 1_000, 10], ids=["the weights", "the first file", "the log"])
def test_a_full_disk_is_one_error_and_leaves_no_half_file(runner: Runner, tmp_path: Path, size: int) -> None:
    file = save_torch(tmp_path / "w.pt", {"fc.weight": torch.arange(1.0, 40_001).reshape(200, 200)})
    with files_of_at_most(size):
        outcome = runner.prune(file, *HALF)
    assert outcome.code == 3
    assert "cannot write" in outcome.message
    assert "-o" in outcome.message
    assert not {name for name in outcome.files if "model" in name or "tmp" in name}
    for name in outcome.files & {"config.json", "plan.json"}:
        json.loads((runner.out / name).read_text(encoding="utf-8"))


def test_a_second_run_in_the_same_folder_waits_for_nothing(runner: Runner, file: Path) -> None:
    with RunFolder(runner.out) as held:
        held.open(resume=False, overwrite=False)
        outcome = runner.prune(file, *HALF)
        assert outcome.code == 2
        assert f"another compress run is writing into {runner.out}" in outcome.message
        assert outcome.files == {".lock", "log.txt"}
    assert runner.prune(file, *HALF).code == 0


def test_a_finished_run_is_kept_unless_told_otherwise(runner: Runner, file: Path) -> None:
    assert runner.prune(file, *HALF).files == FINISHED
    before = (runner.out / "model.pt").read_bytes()
    outcome = runner.prune(file, "--sparsity", "0.9")
    assert outcome.code == 2
    assert "already holds a run" in outcome.message
    assert "--overwrite" in outcome.message
    assert (runner.out / "model.pt").read_bytes() == before
    assert runner.prune(file, "--sparsity", "0.25", "--overwrite").code == 0
    zeros = read_tensors(runner.out / "model.pt").tensors
    assert sum(int((zeros[name] == 0).sum()) for name in ("conv.weight", "fc.weight")) == 29


def test_a_mistake_with_overwrite_does_not_cost_the_old_run(runner: Runner, file: Path, tmp_path: Path) -> None:
    runner.prune(file, *HALF)
    before = {name: (runner.out / name).read_bytes() for name in ("model.pt", "report.json", "plan.json")}
    assert runner.prune(tmp_path / "no-such.pt", *HALF, "--overwrite").code == 3
    assert {name: (runner.out / name).read_bytes() for name in before} == before


def test_a_budget_that_cannot_be_met_does_not_cost_the_old_run(runner: Runner, file: Path) -> None:
    runner.prune(file, *HALF)
    before = {path.name: path.read_bytes() for path in runner.out.iterdir() if path.is_file()}
    assert runner.prune(file, "--sparsity", "0.99", "--floor", "50", "--overwrite").code == 2
    after = {path.name: path.read_bytes() for path in runner.out.iterdir() if path.is_file()}
    assert after.pop("log.txt").startswith(before.pop("log.txt"))
    assert after == before

    assert runner.prune(file, "--sparsity", "0.25", "--overwrite").code == 0
    assert json.loads((runner.out / "config.json").read_text())["sparsity"] == "0.25"
    assert "0.99" not in (runner.out / "log.txt").read_text()


def test_stopping_before_there_is_a_plan_does_not_cost_the_old_run(
    runner: Runner, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.prune(file, *HALF)
    before = (runner.out / "model.pt").read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(method_named("magnitude")), "plan", stop)
    outcome = runner.prune(file, "--sparsity", "0.9", "--overwrite")
    assert outcome.code == 130
    assert "to be replaced is untouched" in outcome.message
    assert "--resume" not in outcome.message
    assert (runner.out / "model.pt").read_bytes() == before


def test_a_strangers_config_file_survives_a_run_that_fails(runner: Runner, file: Path, tmp_path: Path) -> None:
    runner.out.mkdir()
    (runner.out / "config.json").write_text('{"mine": 1}', encoding="utf-8")
    assert runner.prune(file, *HALF).code == 2
    assert runner.prune(tmp_path / "no-such.pt", *HALF, "--overwrite").code == 3
    assert (runner.out / "config.json").read_text(encoding="utf-8") == '{"mine": 1}'


def test_a_run_does_not_replace_the_checkpoint_that_it_reads(runner: Runner, file: Path) -> None:
    runner.prune(file, *HALF)
    before = (runner.out / "model.pt").read_bytes()
    outcome = runner.prune(runner.out / "model.pt", "--sparsity", "0.9", "--overwrite")
    assert outcome.code == 2
    assert "holds the checkpoint itself (model.pt)" in outcome.message
    assert (runner.out / "model.pt").read_bytes() == before
    runner.out = runner.out.with_name("second")
    again = runner.prune(file.with_name("out") / "model.pt", "--sparsity", "0.9")
    assert again.document["achieved"][0]["count"] == 104
    assert [row["zeros_before"] for row in again.document["layers"]] == [58, 0]


def test_a_bracketed_layer_name_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    state = {"[bold]head[/bold].weight": torch.arange(1.0, 17).reshape(4, 4), "blocks[0].weight": torch.ones(2, 2)}
    file = save_torch(tmp_path / "[red]w.pt", state)
    words = ["prune", str(file), *HALF, "--no-export", "-o", str(tmp_path / "out")]
    assert run([*words, "--json", "-q"]) == 0
    printed = capsys.readouterr().out
    assert [row["name"] for row in json.loads(printed)["layers"]] == list(state)
    assert printed.count("\n") == 1
    assert run([*words, "--overwrite"]) == 0
    narrow = capsys.readouterr().out
    assert "[bold]he" in narrow  # the name is broken over lines, its brackets are not eaten
    assert "[red]" in narrow
    monkeypatch.setenv("COLUMNS", "120")
    assert run([*words, "--overwrite"]) == 0
    assert "[bold]head[/bold].weight" in capsys.readouterr().out


def test_what_a_factory_prints_does_not_break_the_document(runner: Runner, file: Path, tmp_path: Path) -> None:
    outcome = runner.prune(file, *HALF, "--arch", f"{write_net(tmp_path)}:make", "--input-shape", "3x8x8")
    assert outcome.code == 0
    assert "a factory that prints" in outcome.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["prune", "--json"], 2),
        (["prunne", "w.pt", "--json"], 2),
        (["prune", "w.pt", "--json", "--colour"], 2),
        (["inspect", "no-such-file.pt", "--json"], 3),
    ],
    ids=["no file", "no such verb", "no such flag", "no such checkpoint"],
)
def test_json_on_failure_is_one_document(capsys: pytest.CaptureFixture[str], words: list[str], code: int) -> None:
    assert run(words) == code
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert (document["ok"], document["error"]["code"]) == (False, code)
    assert document["error"]["message"]
    assert document["error"]["fix"]
    assert printed.err == ""


def test_errors_for_people_are_two_lines_on_stderr(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"")
    assert run(["prune", str(tmp_path / "w.pt"), *HALF, "-o", str(tmp_path / "out")]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if line.startswith(("Error:", "Fix:"))]
    assert lines == [
        f"Error: {tmp_path / 'w.pt'} is empty (0 bytes)",
        "Fix:   copy or download it again; the last attempt wrote nothing",
    ]
    assert "Traceback" not in printed.err


def test_a_bug_is_exit_70_with_a_log(
    monkeypatch: pytest.MonkeyPatch, runner: Runner, file: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("not the user's fault")

    monkeypatch.setattr("compress_cli.pipeline.save", broken)
    outcome = runner.prune(file, *HALF)
    assert outcome.code == 70
    assert "internal error (a bug in compress): ZeroDivisionError: not the user's fault" in outcome.message
    (log,) = tmp_path.glob("compress-bug-*.log")
    assert "Traceback" in log.read_text(encoding="utf-8")


def test_ctrl_c_keeps_the_folder_resumable(monkeypatch: pytest.MonkeyPatch, runner: Runner, file: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("compress_cli.pipeline.save", interrupted)
        outcome = runner.prune(file, *HALF)
    assert outcome.code == 130
    assert f"interrupted; the last good state is in {runner.out}" in outcome.message
    assert "--resume" in outcome.message
    assert "model.pt" not in outcome.files
    again = runner.prune(file, *HALF, "--resume")
    assert again.code == 0
    assert again.files == FINISHED
    assert again.document["achieved"][0]["count"] == 58


@pytest.mark.parametrize("words", [["--json"], []], ids=["json", "text"])
def test_ctrl_c_in_a_verb_without_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path, words: list[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compress_cli.inspection.inspect_checkpoint", interrupted)
    assert run(["inspect", str(file), *words]) == 130
    printed = capsys.readouterr()
    if words:
        assert json.loads(printed.out)["error"] == {"code": 130, "message": "interrupted", "fix": ""}
    else:
        assert printed.err == "Error: interrupted\n"


def test_a_reader_that_goes_away_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        def fileno(self) -> int:
            return os.open(os.devnull, os.O_WRONLY)

    for name in ("stdout", "stderr"):  # the parser replaces both; put them back afterwards
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(sys, "stdout", Closed())
    assert run(["inspect", str(file), "--json"]) == 0


SLOW_FACTORY = """
import pathlib
import time
from torch import nn


def make():
    pathlib.Path(__file__).with_name("started").touch()
    time.sleep(100)
    return nn.Linear(2, 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["INT", "TERM"])
def test_signals_end_a_real_process_with_130(tmp_path: Path, signal: str) -> None:
    """bash waits for the factory to run, sends the signal and hands on the exit code."""
    (tmp_path / "net.py").write_text(SLOW_FACTORY, encoding="utf-8")
    file = save_torch(tmp_path / "w.pt", {"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    words = ["prune", str(file), *HALF, "--arch", f"{tmp_path / 'net.py'}:make", "-o", str(tmp_path / "out"), "-q"]
    process = subprocess.Popen(
        [sys.executable, "-m", "compress_cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    try:
        wait_for(tmp_path / "started", process)
        process.send_signal(getattr(__import__("signal"), f"SIG{signal}"))
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert "Error: interrupted; nothing was written yet" in err
    assert "--resume" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "model.pt").exists()


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Until the path exists; fails when the process ends first."""
    import time

    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run did not start in time"
        time.sleep(0.05)


@pytest.mark.parametrize("planned", [False, True])
def test_a_run_that_ends_before_its_plan_leaves_nothing_to_resume(tmp_path: Path, planned: bool) -> None:
    with RunFolder(tmp_path / "run").open(resume=False, overwrite=False) as folder:
        folder.write_json("config.json", {})
        folder.finish_stage("original", {"top1": 93.39})
        if planned:
            folder.write_json("plan.json", {})
        folder.give_up()
        kept = {name for name in ("config.json", "state.json", "plan.json") if folder.file(name).exists()}
    assert kept == ({"config.json", "state.json", "plan.json"} if planned else set())
    assert folder.wrote is planned


def test_what_was_measured_before_the_plan_survives_the_run_that_it_replaces(tmp_path: Path) -> None:
    for value in (93.39, 10.0):
        with RunFolder(tmp_path / "run").open(resume=False, overwrite=True) as folder:
            folder.write_json("config.json", {"lr": value})
            folder.finish_stage("original", {"top1": value})
            folder.finish_stage("more", {})
            held = json.loads(folder.file("config.json").read_text())
            assert held == {"lr": 93.39}  # the old run's, until there is a plan
            folder.write_json("plan.json", {})
        assert json.loads(folder.file("config.json").read_text()) == {"lr": value}
        assert json.loads(folder.file("state.json").read_text())["stages"] == {"original": {"top1": value}, "more": {}}
