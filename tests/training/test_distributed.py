"""Two gloo processes equal one; evaluation adds up exactly; torchrun restarts after a worker died and finishes."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress_cli.config import resolve
from compress_cli.console import Out
from compress_cli.demo.train import write_original
from compress_cli.training import distributed, finetune, launch, placing
from compress_cli.training.recipe import Recipe
from pruners import magnitude
from pruners.masks import Masks

ROOT = Path(__file__).resolve().parents[2]


class TwoHeads(nn.Module):
    """Without batch norm, whose statistics are each process's own; with a layer that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.digit = nn.Linear(288, 10)
        self.parity = nn.Linear(288, 2)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.conv(x).relu().flatten(1)
        return {"digit": self.digit(x), "parity": self.parity(x)}


def train(open_run: Callable[..., Any], output: Path) -> None:
    torch.manual_seed(0)
    model = TwoHeads()
    plan = magnitude.plan(magnitude.candidates_in_module(model), magnitude.MagnitudeOptions("0.5"))
    magnitude.apply_(model, plan)
    recipe = Recipe(epochs=2, lr=0.05, batch_size=48, accumulate=2, clip_norm=1.0)
    with open_run(output=str(output)) as (session, quality):
        record = finetune(
            model, quality, session=session, recipe=recipe, constraint=Masks(model, plan.names), plan=plan
        )
        scores = quality.evaluate(model)
    result = {"weights": model.state_dict(), "processes": record["processes"], "batch": record["batch_size"]}
    torch.save(result | {"scores": [[s.value, s.loss, s.samples] for s in scores.values()]}, output.with_suffix(".pt"))


def in_group(rank: int, open_run: Callable[..., Any], folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    train(open_run, folder / str(rank))
    torch.distributed.destroy_process_group()


@pytest.mark.forks
def test_two_processes_equal_one_with_the_same_images_a_step(open_run: Callable[..., Any], tmp_path: Path) -> None:
    train(open_run, tmp_path / "alone")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=in_group, args=(rank, open_run, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
    assert [worker.exitcode for worker in workers] == [0, 0]
    alone, first, second = (torch.load(tmp_path / name) for name in ("alone.pt", "0.pt", "1.pt"))
    assert (alone["processes"], first["processes"], first["batch"]) == (1, 2, alone["batch"])
    for name, weight in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-4, atol=1e-6)
        assert torch.equal(first["weights"][name] == 0, weight == 0)
    for mine, theirs in zip(first["scores"], alone["scores"], strict=True):
        assert mine[0] == theirs[0]
        assert mine[1] == pytest.approx(theirs[1], rel=1e-4)
        assert mine[2] == theirs[2] == 64


def with_batchnorm(rank: int, open_run: Callable[..., Any], network: nn.Module, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    odd = torch.full((2, 3, 4, 4), rank, dtype=torch.float16).to(memory_format=torch.channels_last)
    flag = torch.tensor(rank == 0)
    distributed.broadcast_([odd, flag, torch.empty(0)])
    with open_run(output=str(folder / str(rank))) as (session, quality):
        finetune(network, quality, session=session, recipe=Recipe(epochs=1, lr=0.05, batch_size=48))
    torch.save({"odd": odd, "flag": flag, **network.state_dict()}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.forks
def test_processes_end_with_the_weights_and_statistics_of_the_saved_state(
    open_run: Callable[..., Any], network: nn.Module, tmp_path: Path
) -> None:
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=with_batchnorm, args=(rank, open_run, network, tmp_path), daemon=True)
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
    assert [worker.exitcode for worker in workers] == [0, 0]
    first, second = (torch.load(tmp_path / name) for name in ("0.pt", "1.pt"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert second["flag"]
    assert not second["odd"].any()
    saved = torch.load(tmp_path / "0" / "checkpoints" / "last.pt")["weights"]
    assert all(torch.equal(value, second[name]) for name, value in saved.items())


def test_each_process_takes_its_gpu_before_it_joins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[object] = []

    def join(backend: str) -> None:
        done.append(backend)
        raise LookupError

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(placing, "choose_device", lambda wanted: torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(launch, "_join", join)
    config = resolve("prune", "original.pt", {"output": str(tmp_path), "sparsity": "0.5"})
    with pytest.raises(LookupError), launch.joined(config, Out(quiet=True), resume=False):
        pass
    assert done == [torch.device("cuda", 1), "cpu:gloo,cuda:nccl"]


TASK = """
import os, signal
from compress_cli.demo.task import Digits, tasks
from compress_cli.demo import task as demo

class Dying:
    def __init__(self):
        self.data = Digits(test=False)
        self.labels = self.data.labels[:240]
    def __len__(self):
        return 240
    def __getitem__(self, index):
        first = os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and os.path.exists("run/checkpoints/last.pt"):  # in the epoch after the first state was written
            os.kill(os.getpid(), signal.SIGKILL)
        return self.data[index]

def train_data(): return Dying()
def test_data(): return Digits(test=True)
"""


@pytest.mark.slow
def test_torchrun_restarts_after_a_worker_died_and_finishes(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    write_original(tmp_path / "original.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["--master-port", str(port), "-m", "compress_cli", "finetune", "original.pt", "--task", "task.py"]
    command += ["--arch", "compress_cli.demo.net:two_task_cnn", "--input-shape", "1x8x8", "--epochs", "4"]
    command += ["--batch-size", "60", "--no-export", "-o", "run", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])  # the first line may be the first attempt's failure
    assert report["training"]["processes"] == 2
    assert [row["epoch"] for row in report["training"]["history"]] == [1, 2, 3, 4]
    assert "going on at step" in done.stderr
    scores = report["tasks"][0]["scores"]
    assert scores["final"] > 90
