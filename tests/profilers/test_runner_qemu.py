"""The emulated runner with a stand-in for qemu: what is checked, compared and counted. A real run needs 500 MB."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from profilers.runners.qemu import PYTHON, QemuRunner
from profilers.runners.result import RunnerFailed, Settings
from tests.profilers.onnx_files import write_convolution

STAND_IN = """#!{python}
import json, os, subprocess, sys
arguments = sys.argv[1:]
program, task = arguments[-2], json.loads(arguments[-1])
done = subprocess.run([{python!r}, program, json.dumps(task)], capture_output=True, text=True)
print(done.stdout)
if "-plugin" in arguments:
    print("total insns:", 5000 + 1234 * task["iterations"], file=sys.stderr)
if task.get("outputs") and {spoil}:
    import numpy
    with numpy.load(task["outputs"]) as saved:
        spoiled = {{name: saved[name] + 0.5 * abs(saved[name]).max() for name in saved.files}}
    numpy.savez(task["outputs"], **spoiled)
"""


def stand_in(tmp_path: Path, *, spoil: bool = False, plugin: bool = True) -> QemuRunner:
    program = tmp_path / "qemu-stand-in"
    program.write_text(STAND_IN.format(python=sys.executable, spoil=spoil), encoding="utf-8")
    program.chmod(0o755)
    for part in (f"root/{PYTHON}", "root/proc/cpuinfo", "site/onnxruntime/x", "site/numpy/x"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part).touch()
    if plugin:
        (tmp_path / "insn.so").touch()
    return QemuRunner(tmp_path, sys.executable, program=str(program))


def test_outputs_and_instructions(tmp_path: Path) -> None:
    model = write_convolution(tmp_path / "m.onnx")
    (found,) = stand_in(tmp_path).emulate([model], Settings())
    assert (found.max_rel, found.outputs, found.instructions) == (0.0, 1, 1234)
    (row,) = stand_in(tmp_path, plugin=True).measure([model], Settings())
    assert (row.instructions, row.min_ms, row.median_ms) == (1234, None, None)
    assert row.extra == {"max_rel": 0.0, "outputs": 1}


def test_wrong_outputs_show(tmp_path: Path) -> None:
    model = write_convolution(tmp_path / "m.onnx")
    (found,) = stand_in(tmp_path, spoil=True, plugin=False).emulate([model], Settings())
    assert found.max_rel == pytest.approx(0.5)
    assert found.instructions is None


def test_an_incomplete_folder_says_what_is_missing(tmp_path: Path) -> None:
    runner = stand_in(tmp_path)
    os.remove(tmp_path / "root/proc/cpuinfo")
    with pytest.raises(RunnerFailed, match="is no emulation folder: root/proc/cpuinfo is not there"):
        runner.emulate([tmp_path / "m.onnx"], Settings())
    with pytest.raises(RunnerFailed, match="no-qemu is not installed"):
        QemuRunner(tmp_path, sys.executable, program="no-qemu").emulate([], Settings())
