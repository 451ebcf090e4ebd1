"""The CI examples executed: a git hook in a scratch repository lets a small model in and keeps a large one out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "ci"


def write_model(path: Path, width: int) -> None:
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(8, width)).astype(np.float32), "w")
    second = numpy_helper.from_array(np.ones((width, 2), np.float32), "v")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [weight, second],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    subprocess.run(["git", "init", "-q"], check=True)
    for name, value in (("user.name", "t"), ("user.email", "t@example.invalid")):
        subprocess.run(["git", "config", name, value], check=True)
    shutil.copy(EXAMPLES / "pyproject.toml", tmp_path)
    shutil.copy(EXAMPLES / "pre-commit", tmp_path / ".git/hooks/pre-commit")
    return tmp_path


def commit(message: str) -> subprocess.CompletedProcess[str]:
    subprocess.run(["git", "add", "."], check=True)
    return subprocess.run(["git", "commit", "-m", message], capture_output=True, text=True, check=False)


def test_the_hook_keeps_a_grown_model_out(repository: Path) -> None:
    subprocess.run(["git", "commit", "-qm", "start", "--allow-empty", "--no-verify"], check=True)
    write_model(repository / "model.onnx", 100)
    subprocess.run(["git", "add", "."], check=True)
    subprocess.run(["git", "commit", "-qm", "the first model", "--no-verify"], check=True)
    write_model(repository / "model.onnx", 104)
    passing = commit("a little larger")
    assert passing.returncode == 0, passing.stderr
    write_model(repository / "model.onnx", 200)
    failing = commit("twice as large")
    assert failing.returncode == 1
    assert "max-size" in failing.stdout + failing.stderr
    assert "FAILED" in failing.stdout + failing.stderr


@pytest.mark.parametrize("name", ["github-workflow.yml", "gitlab-job.yml"])
def test_the_other_examples_call_the_same_command(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert "python -m compress_cli check models/model.onnx" in text
    assert "--baseline" in text
