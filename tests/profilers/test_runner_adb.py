"""The adb protocol against a fake adb: the commands in order, the parsing, the cleaning up. No phone is used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from profilers.runners.adb import FOLDER, AdbRunner, parse_benchncnn, parse_perf_test
from profilers.runners.result import RunnerFailed, Settings

PERF_TEST = """Session creation time cost: 0.0154 s
Average inference time cost: 4.1 ms
Peak working set size: 37748736 bytes
Runs:10
Min Latency: 0.00395 s
Max Latency: 0.0050 s
P50 Latency: 0.0041 s
P90 Latency: 0.0043 s
P99 Latency: 0.0049 s
"""
FAKE = """#!{python}
import json, sys
log, state, output = {log!r}, {state!r}, {output!r}
arguments = sys.argv[1:]
with open(log, "a") as file:
    file.write(json.dumps(arguments) + "\\n")
text = " ".join(arguments)
if "get-state" in text:
    print(state)
elif "ro.product.model" in text:
    print("Pixel 8")
elif "ro.board.platform" in text:
    print("zuma")
elif "onnxruntime_perf_test -I" in text or "benchncnn " in text and "param=" in text:
    print(output)
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in ("onnxruntime_perf_test", "original.onnx", "small net.onnx")]
    for path in found:
        path.write_bytes(b"x")
    return found


def fake_adb(tmp_path: Path, state: str = "device", output: str = PERF_TEST) -> tuple[str, Path]:
    path, log = tmp_path / "adb", tmp_path / "adb.log"
    path.write_text(FAKE.format(python=sys.executable, log=str(log), state=state, output=output), encoding="utf-8")
    path.chmod(0o755)
    return str(path), log


def test_commands_in_order(tmp_path: Path, files: list[Path]) -> None:
    adb, log = fake_adb(tmp_path)
    runner = AdbRunner("SER1AL", files[0], adb=adb, pause_s=0.0)
    original, small = runner.measure(files[1:], Settings(threads=2, iterations=40))
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(call[:2] == ["-s", "SER1AL"] for call in calls)
    steps = [call[2:] for call in calls]
    assert steps[0] == ["get-state"]
    assert steps[3] == ["shell", f"mkdir -p {FOLDER}"]
    assert steps[4] == ["push", str(files[0]), f"{FOLDER}/onnxruntime_perf_test"]
    assert steps[5:7] == [["push", str(files[1]), f"{FOLDER}/0.onnx"], ["push", str(files[2]), f"{FOLDER}/1.onnx"]]
    assert steps[7] == ["shell", f"chmod 755 {FOLDER}/onnxruntime_perf_test"]
    runs = [step[1] for step in steps if "perf_test -I" in step[-1]]
    command = "./onnxruntime_perf_test -I -m times -r 10 -x 2 -y 1 -e cpu {}.onnx result.txt"
    expected = [f"cd {FOLDER} && LD_LIBRARY_PATH=. {command.format(index)}" for index in (0, 1, 1, 0, 0, 1, 1, 0)]
    assert runs == expected
    assert steps[-1] == ["shell", f"rm -rf {FOLDER}"]
    assert (original.device, original.runtime, original.threads) == ("Pixel 8 (zuma)", "onnxruntime", 2)
    assert (small.min_ms, small.median_ms, small.p90_ms) == pytest.approx((3.95, 4.1, 4.3))
    assert (small.peak_rss_mb, small.iterations, small.model) == (36.0, 40, "small net.onnx")


def test_a_phone_that_is_not_ready(tmp_path: Path, files: list[Path]) -> None:
    adb, log = fake_adb(tmp_path, state="unauthorized")
    with pytest.raises(RunnerFailed, match="the phone is unauthorized: allow USB debugging"):
        AdbRunner("", files[0], adb=adb).measure(files[1:], Settings())
    assert len(log.read_text().splitlines()) == 1
    with pytest.raises(RunnerFailed, match="no-adb is not there"):
        AdbRunner("", files[0], adb="no-adb").measure(files[1:], Settings())


def test_output_that_cannot_be_read_still_cleans_up(tmp_path: Path, files: list[Path]) -> None:
    adb, log = fake_adb(tmp_path, output="Segmentation fault")
    with pytest.raises(RunnerFailed, match=r"cannot be read") as failure:
        AdbRunner("", files[0], adb=adb, pause_s=0.0).measure(files[1:], Settings())
    assert failure.value.log == "Segmentation fault"
    assert json.loads(log.read_text().splitlines()[-1]) == ["shell", f"rm -rf {FOLDER}"]


def test_unknown_programs_are_refused(tmp_path: Path, files: list[Path]) -> None:
    with pytest.raises(RunnerFailed, match=r"original\.onnx is not known; name it onnxruntime_perf_test or benchncnn"):
        AdbRunner("", files[1]).measure(files[1:], Settings())


def test_parsers() -> None:
    assert parse_perf_test("Average inference time cost: 4.25 ms\n") == {"median_ms": 4.25}
    assert parse_perf_test("nothing") == {}
    line = "            net.param  min =   11.66  max =   11.80  avg =   11.74"
    assert parse_benchncnn(line) == {"min_ms": 11.66, "median_ms": 11.74}
    assert parse_benchncnn("no line") == {}
