"""ONNX Runtime in a process of its own: here, and through a real sshd on the loopback where one is installed."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from profilers.runners.ort_process import PROGRAM, LocalRunner, SshRunner, split_results, task_text
from profilers.runners.result import RunnerFailed, Settings
from tests.profilers.onnx_files import write_convolution

QUICK = Settings(iterations=20, warmup=2, batch=2, timeout_s=120)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_convolution(folder / "wide one.onnx", 96, 32), write_convolution(folder / "narrow.onnx", 2, 32)]


def check(wide: object, narrow: object) -> None:
    for row in (wide, narrow):
        assert 0 < row.min_ms <= row.median_ms <= row.p90_ms
        assert (row.threads, row.iterations) == (1, 20)
        assert row.runtime == f"onnxruntime {onnxruntime.__version__}"
        assert row.load_ms > 0
        assert row.device
    assert wide.min_ms > narrow.min_ms  # 96 channels against 2


def test_a_fresh_process_here(files: list[Path]) -> None:
    wide, narrow = LocalRunner().measure(files, QUICK)
    check(wide, narrow)
    assert wide.model == "wide one.onnx"
    assert wide.peak_rss_mb is None or wide.peak_rss_mb > 0


def test_outputs_are_those_of_onnx_runtime_here(files: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "outputs.npz"
    task = task_text([str(files[0])], Settings(iterations=1, warmup=0, batch=3), str(target))
    subprocess.run([sys.executable, str(PROGRAM), task], check=True, capture_output=True)
    x = np.random.RandomState(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(files[0])).run(None, {"x": x})[0]
    with np.load(target) as saved:
        np.testing.assert_allclose(saved["0/y"], expected, rtol=1e-6)


def test_a_broken_model_fails_with_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    with pytest.raises(RunnerFailed, match="the measuring process ended with status 1") as failure:
        LocalRunner().measure([tmp_path / "broken.onnx"], QUICK)
    assert "broken.onnx" in failure.value.log


def test_a_line_without_all_models_is_refused(files: list[Path]) -> None:
    with pytest.raises(RunnerFailed, match="one entry per model"):
        split_results(json.dumps({"device": "x", "threads": 1, "models": [{"min_ms": 1.0}]}), files)


def test_the_program_needs_nothing_of_this_project() -> None:
    source = PROGRAM.read_text(encoding="utf-8")
    assert "profilers" not in source.split('"""')[2]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """A real sshd on a free port of the loopback with a key of its own; ssh options to reach it."""
    server = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if server is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no OpenSSH server here")
    folder = tmp_path_factory.mktemp("ssh")
    folder.chmod(0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
    }
    configuration = folder / "config"
    configuration.write_text("".join(f"{key} {value}\n" for key, value in options.items()), encoding="utf-8")
    Path("/run/sshd").mkdir(exist_ok=True) if Path("/run").stat().st_uid == 0 and getpass.getuser() == "root" else None
    process = subprocess.Popen([server, "-D", "-e", "-f", str(configuration)], stderr=subprocess.PIPE)
    known = folder / "known"
    reach = ("-F", "/dev/null", "-p", str(port), "-i", str(folder / "user"), "-o", f"UserKnownHostsFile={known}")
    reach = (*reach, "-o", "StrictHostKeyChecking=no", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR")
    try:
        if not _answers(reach):
            pytest.skip("the OpenSSH server does not start or let us in here")
        yield reach
    finally:
        process.terminate()
        process.wait()


def _answers(reach: tuple[str, ...]) -> bool:
    for _ in range(20):
        done = subprocess.run(["ssh", "-o", "BatchMode=yes", *reach, "127.0.0.1", "true"], capture_output=True)
        if done.returncode == 0:
            return True
        time.sleep(0.25)
    return False


def test_through_a_real_ssh(files: list[Path], sshd: tuple[str, ...]) -> None:
    runner = SshRunner("127.0.0.1", options=sshd, python=sys.executable)
    before = _remote_folders(sshd)
    wide, narrow = runner.measure(files, QUICK)
    check(wide, narrow)
    assert (runner.name, runner.label) == ("ssh:127.0.0.1", "measured on a device")
    assert _remote_folders(sshd) == before  # nothing is left there


def _remote_folders(sshd: tuple[str, ...]) -> str:
    command = ["ssh", *sshd, "127.0.0.1", "ls -d /tmp/tmp.* 2>/dev/null | sort; true"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_ssh_failures_say_which_step(files: list[Path], sshd: tuple[str, ...]) -> None:
    with pytest.raises(RunnerFailed, match=r"the measurement on 127\.0\.0\.1 ended with status 127") as failure:
        SshRunner("127.0.0.1", options=sshd, python="no-python-here").measure(files, QUICK)
    assert "no-python-here" in failure.value.log
    with pytest.raises(RunnerFailed, match="making a folder there ended with status 255"):
        SshRunner("127.0.0.1", options=("-p", "1", *sshd)).measure(files, QUICK)
