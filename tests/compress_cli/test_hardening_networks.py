"""Bad input to `compress prune`: networks that do not run, cannot be exported, or hold odd layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compress_cli.checkpoint import read_tensors
from tests.compress_cli.checkpoint.checkpoint_files import save_torch, weights, write_net
from tests.compress_cli.hard_runs import FINISHED, Runner

SOURCE = '''
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x)


class OddLayers(Base):
    """One layer that never runs, one without outputs, and two that share a weight."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(8, 4)
        self.none = nn.Linear(8, 0)
        self.twin = nn.Linear(8, 8)
        self.twin.weight = self.fc.weight

    def forward(self, x):
        x = self.twin(self.fc(x))
        return torch.cat([x, self.none(x)], 1)


class UnknownOperator(Base):
    def forward(self, x):
        return torch.linalg.eigvals(self.fc(x).reshape(-1, 8, 1) @ torch.ones(1, 8)).real


class Crashes(Base):
    def forward(self, x):
        raise RuntimeError("the paint is wet")


class ReturnsNothing(Base):
    def forward(self, x):
        self.fc(x)


class Random(Base):
    def forward(self, x):
        return self.fc(x) + torch.rand(1)
'''
HALF = ("--sparsity", "0.5", "--input-shape", "8")


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(tmp_path, capsys)


def stored(folder: Path, name: str) -> tuple[Path, tuple[str, str]]:
    """A checkpoint of one of the networks above, and the flag that names it."""
    file = folder / "odd_nets.py"
    file.write_text(SOURCE, encoding="utf-8")
    scope: dict[str, type[nn.Module]] = {}
    exec(compile(SOURCE, str(file), "exec"), scope)
    torch.manual_seed(0)
    return save_torch(folder / "w.pt", scope[name]().state_dict()), ("--arch", f"{file}:{name}")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_unused_zero_size_and_shared_layers_go_through_the_whole_chain(runner: Runner, tmp_path: Path) -> None:
    file, arch = stored(tmp_path, "OddLayers")
    outcome = runner.prune(file, *HALF, *arch, export=True)
    assert outcome.code == 0
    assert outcome.files == {*FINISHED, "model.onnx"}
    assert outcome.document["achieved"][0]["out_of"] == 8 * 8 + 8 * 4
    assert outcome.document["achieved"][0]["count"] == 48
    assert outcome.document["verification"]["ok"] is True
    tensors = read_tensors(runner.out / "model.pt").tensors
    assert sum(int((tensors[f"{name}.weight"] == 0).sum()) for name in ("fc", "unused")) == 48
    assert torch.equal(tensors["fc.weight"], tensors["twin.weight"])
    assert tensors["none.weight"].shape == (0, 8)


def test_an_operator_without_an_onnx_form_names_the_way_on(runner: Runner, tmp_path: Path) -> None:
    file, arch = stored(tmp_path, "UnknownOperator")
    runner.refused(file, *HALF, *arch, code=3, says="cannot be exported to ONNX", export=True)
    again = runner.prune(file, *HALF, *arch)
    assert again.code == 0
    assert "no ONNX file: --no-export" in again.document["notes"]


@pytest.mark.parametrize("export", [True, False], ids=["export", "no export"])
def test_a_network_that_raises_shows_its_words(runner: Runner, tmp_path: Path, export: bool) -> None:
    file, arch = stored(tmp_path, "Crashes")
    runner.refused(file, *HALF, *arch, code=3, says="the paint is wet", export=export)


def test_a_network_that_returns_nothing(runner: Runner, tmp_path: Path) -> None:
    file, arch = stored(tmp_path, "ReturnsNothing")
    runner.refused(file, *HALF, *arch, code=3, says="the model returns no tensor", export=True)


def test_a_failed_proof_is_exit_4_and_leaves_no_onnx_file(runner: Runner, tmp_path: Path) -> None:
    file, arch = stored(tmp_path, "Random")
    outcome = runner.prune(file, *HALF, *arch, export=True)
    assert outcome.code == 4
    assert "no model.onnx was written" in outcome.message
    assert not {name for name in outcome.files if "onnx" in name or "tmp" in name or "report" in name}


@pytest.mark.parametrize("shape", ["5x8x8", "3x1x1", "8"])
def test_an_input_shape_that_the_network_does_not_take(runner: Runner, tmp_path: Path, shape: str) -> None:
    file = save_torch(tmp_path / "w.pt", weights())
    words = ("--sparsity", "0.5", "--arch", f"{write_net(tmp_path)}:make", "--input-shape", shape)
    outcome = runner.refused(file, *words, code=3, says="does not run on its example inputs")
    assert "--input-shape CxHxW" in outcome.document["error"]["fix"]


def test_weights_of_another_network(runner: Runner, tmp_path: Path) -> None:
    file = save_torch(tmp_path / "w.pt", weights(classes=5))
    words = ("--sparsity", "0.5", "--arch", f"{write_net(tmp_path)}:make", "--input-shape", "3x8x8")
    runner.refused(file, *words, code=3, says="--arch-args num_classes=5")


def test_a_network_of_unknown_shape_is_pruned_without_an_onnx_file(runner: Runner, tmp_path: Path) -> None:
    file = save_torch(tmp_path / "w.pt", weights())
    outcome = runner.prune(file, "--sparsity", "0.5", "--arch", f"{write_net(tmp_path)}:make", export=True)
    assert outcome.code == 0
    assert outcome.files == FINISHED
    assert any("--input-shape CxHxW" in note for note in outcome.document["notes"])


def test_tensors_without_an_architecture_are_pruned_and_the_flag_is_named(runner: Runner, tmp_path: Path) -> None:
    outcome = runner.prune(save_torch(tmp_path / "w.pt", weights()), "--sparsity", "0.5", export=True)
    assert outcome.code == 0
    assert outcome.files == FINISHED
    assert any("--arch path/to/net.py:factory" in note for note in outcome.document["notes"])
