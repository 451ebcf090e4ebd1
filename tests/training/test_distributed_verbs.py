"""`prune` and `decompose` in two processes: planned once, the same plan in both, one folder, counts that add up."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from compress_cli.app import run
from compress_cli.checkpoint import read_tensors
from compress_cli.demo.net import two_task_cnn
from compress_cli.methods import method_named

NET = """
from compress_cli.demo.net import TwoTaskCNN

class Own(TwoTaskCNN):
    pass

def own():
    return Own(24)
"""
TASK = """
from compress_cli.demo import task as demo
from compress_cli.demo.task import tasks
from torch.utils.data import Subset

def train_data(): return Subset(demo.train_data(), range(96))
def test_data(): return Subset(demo.test_data(), range(61))
"""
COMMON = ["original.pt", "--arch", "net.py:own", "--input-shape", "1x8x8", "--task", "task.py", "--no-export", "-q"]
VERBS: dict[str, list[str]] = {
    "channels": ["prune", "--method", "channels", "--max-flops", "70%", "--epochs", "1"],
    "factors": ["decompose", "--max-params", "60%", "--epochs", "0"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import torch._dynamo  # what every child would import anew
    import torch.export

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(two_task_cnn().state_dict(), "original.pt")
    Path("net.py").write_text(NET)
    Path("task.py").write_text(TASK)
    return tmp_path


def one_of(count: int, rank: int, port: int, arguments: list[str]) -> None:
    """What torchrun starts; the planning leaves a mark for each process that did any."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    kind = type(method_named(_method(arguments)))
    original = kind.plan

    def plan(self: Any, *given: Any) -> Any:
        Path(f"planned-{rank}").touch()
        return original(self, *given)

    kind.plan = plan  # type: ignore[method-assign]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = run(arguments)
    Path(f"said-{rank}").write_text(said.getvalue())
    os._exit(code)


def _method(arguments: list[str]) -> str:
    if "--method" in arguments:
        return arguments[arguments.index("--method") + 1]
    return "alds" if arguments[0] == "decompose" else "magnitude"


def in_processes(count: int, arguments: list[str]) -> list[int | None]:
    """Exit codes; in children even when there is one, as nothing can be forked after autograd has run here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=one_of, args=(count, rank, port, arguments)) for rank in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    return [worker.exitcode for worker in workers]


@pytest.mark.forks
@pytest.mark.parametrize("name", VERBS)
def test_both_work_on_the_plan_of_the_first(folder: Path, name: str) -> None:
    verb, *flags = VERBS[name]
    assert in_processes(1, [verb, *COMMON, *flags, "-o", "alone", "--json"]) == [0]
    Path("planned-0").unlink()
    assert in_processes(2, [verb, *COMMON, *flags, "-o", "together", "--json"]) == [0, 0]
    assert (Path("planned-0").exists(), Path("planned-1").exists()) == (True, False)
    assert Path("said-1").read_text() == ""
    report = json.loads(Path("said-0").read_text())
    alone = json.loads(Path("alone/report.json").read_text())
    assert report["achieved"] == alone["achieved"]
    for mine, theirs in zip(report["tasks"], alone["tasks"], strict=True):
        assert mine["samples"] == theirs["samples"] == 61
        for stage in ("original", "pruned"):
            assert mine["scores"][stage] == theirs["scores"][stage]
            assert mine["losses"][stage] == pytest.approx(theirs["losses"][stage], rel=1e-6)
    mine, theirs = (json.loads(Path(run_folder, "plan.json").read_text()) for run_folder in ("together", "alone"))
    assert mine == theirs
    if "0" in flags[-1:]:
        found, wanted = (read_tensors(f"{run_folder}/model.pt").tensors for run_folder in ("together", "alone"))
        assert all(torch.equal(found[tensor], wanted[tensor]) for tensor in wanted)
    else:
        assert report["training"]["processes"] == 2
        assert report["training"]["history"][-1]["loss"] > 0


@pytest.mark.forks
def test_when_the_first_cannot_plan_the_other_does_not_wait(folder: Path) -> None:
    command = ["decompose", *COMMON, "--max-params", "0.1%", "--epochs", "0", "-o", "run", "--json"]
    assert in_processes(2, command) == [2, 3]
    said = json.loads(Path("said-0").read_text())
    assert "cannot be met" in said["error"]["message"]
