"""Structure and ordering of the measurements, never milliseconds; and the verdict's rules one by one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from profilers import latency as lat
from profilers.contention import Contention, ContentionMeter
from profilers.errors import MeasurementFailed
from profilers.latency import Timed, compare, compare_runs
from tests.profilers.onnx_files import write_convolution

QUIET = Contention(others=0.0, waiting=0.0, stolen=0.0, cores=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    return write_convolution(folder / "wide.onnx", 128, 32), write_convolution(folder / "narrow.onnx", 2, 32)


def test_two_files_interleaved(files: tuple[Path, Path]) -> None:
    found = compare(*files, budget_s=0.5)
    original, compressed = found.latencies
    assert (original.profile, compressed.profile) == ("original", "compressed")
    assert original.runs == compressed.runs >= lat.MIN_BLOCKS * lat.RUNS_PER_BLOCK
    for row in found.latencies:
        assert 0 < row.min_ms <= row.p50_ms <= row.p90_ms <= row.p95_ms <= row.p99_ms
        assert row.load_ms > 0
        assert row.first_ms > 0
        assert row.per_second == pytest.approx(1000 / row.p50_ms)
        assert (row.threads, row.provider, row.batch) == (1, "CPUExecutionProvider", 1)
    assert found.ratio is not None
    assert found.ratio_low is not None
    assert found.ratio_high is not None
    assert found.ratio_low <= found.ratio <= found.ratio_high < 1  # 2 channels against 128


def test_document_is_json_with_the_promised_keys(files: tuple[Path, Path]) -> None:
    document = json.loads(json.dumps(compare(*files, budget_s=0.05).to_dict()))
    assert {"latencies", "ratio", "ratio_low", "ratio_high", "trustworthy", "reason", "machine"} <= document.keys()
    wanted = {"profile", "provider", "threads", "batch", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "spread_ms", "runs"}
    assert all(wanted | {"load_ms", "per_second"} <= row.keys() for row in document["latencies"])
    assert document["machine"]["cores"] >= 1


def test_one_file_has_no_ratio(files: tuple[Path, Path]) -> None:
    found = compare(None, files[1], batch=3, budget_s=0.05)
    assert [row.profile for row in found.latencies] == ["compressed"]
    assert found.latencies[0].batch == 3
    assert (found.ratio, found.ratio_low, found.ratio_high) == (None, None, None)


def test_inputs_of_the_caller_and_their_batch(files: tuple[Path, Path]) -> None:
    inputs = {"image": np.ones((2, 3, 32, 32), np.float32)}  # the only input: taken whatever its name
    assert compare(*files, inputs=inputs, budget_s=0.05).latencies[0].batch == 2
    assert compare(*files, inputs=inputs, batch=5, budget_s=0.05).latencies[0].batch == 5


def test_bad_files_and_inputs_say_what_is_wrong(files: tuple[Path, Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(files[0].read_bytes()[:100])
    with pytest.raises(MeasurementFailed, match=r"cannot load damaged\.onnx"):
        compare(None, damaged)
    with pytest.raises(MeasurementFailed, match=r"cannot load absent\.onnx"):
        compare(None, tmp_path / "absent.onnx")
    with pytest.raises(MeasurementFailed, match=r"no NoSuchProvider here; it has .*CPUExecutionProvider"):
        compare(None, files[0], provider="NoSuchProvider")
    with pytest.raises(MeasurementFailed, match=r"cannot run wide\.onnx on these inputs"):
        compare(None, files[0], inputs={"x": np.ones((1, 4, 32, 32), np.float32)})
    with pytest.raises(MeasurementFailed, match="wants the inputs x, not a, b"):
        compare(None, files[0], inputs={"a": np.ones(1), "b": np.ones(1)})
    fixed = write_convolution(tmp_path / "fixed.onnx", batch=1)
    with pytest.raises(MeasurementFailed, match=r"cannot run fixed\.onnx"):
        compare(None, fixed, inputs={"x": np.ones((1, 3, 8, 8), np.float32)}, batch=2)


def test_free_spatial_dimensions_need_an_input(tmp_path: Path) -> None:
    import onnx

    path = write_convolution(tmp_path / "free.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    onnx.save(model, path)
    with pytest.raises(MeasurementFailed, match="give an input of a fixed size"):
        compare(None, path)


def test_runs_alternate_in_abba_order() -> None:
    calls: list[str] = []

    def slow(name: str) -> Timed:
        return Timed(name, lambda: (calls.append(name), _spin(0.005)))

    found = compare_runs([slow("A"), slow("B")], provider="none", threads=1, batch=1, budget_s=0.0)
    tail = "".join(calls)[-lat.MIN_BLOCKS * 2 * lat.RUNS_PER_BLOCK :]
    assert tail == "ABBAABBA" * lat.MIN_BLOCKS
    assert found.blocks == lat.MIN_BLOCKS


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def blocks(*minima: float) -> np.ndarray:
    return np.asarray([[value, value * 3] for value in minima])


def verdict(times: list[np.ndarray], contention: Contention = QUIET) -> list[str]:
    ratio = lat.block_ratio(times[0], times[1]) if len(times) == 2 else None
    return lat._troubles(times, ratio, contention)


def test_verdict_is_silent_on_quiet_machines() -> None:
    assert verdict([blocks(*[2.0] * 9), blocks(*[1.0] * 9)]) == []


def test_verdict_names_each_trouble() -> None:
    steady = blocks(*[1.0] * 10)
    assert verdict([steady, blocks(*[1.0, 2.0] * 5)])[0].startswith("the ratio is only known within 1.00 to 2.00")
    slower = blocks(1, 1, 1, 1, 1, 1.5, 1.5, 1.5, 1.5, 1.5)
    assert verdict([slower]) == ["the second half was 50% slower than the first"]
    assert verdict([blocks(1.0, 1.0)]) == ["only 4 runs of each model"]
    hog = Contention(others=1.0, waiting=0.4, stolen=0.3, cores=2)
    assert verdict([steady], hog) == [
        "other processes kept 1.0 of 2 cores busy",
        "the process waited for a core 40% of the time",
        "the host took 0.3 cores away",
    ]
    assert verdict([steady], Contention(others=1.0, waiting=0.0, stolen=0.0, cores=64)) == []
    assert verdict([steady], Contention(None, None, None, 2)) == []


def test_a_process_beside_us_is_seen() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(1, flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as hog:
        try:
            assert hog.stdout is not None
            hog.stdout.readline()
            meter = ContentionMeter()
            _spin(1.0)
            found = meter.stop(threads=1)
        finally:
            hog.kill()
    if found.others is None:
        pytest.skip("no /proc/stat here")
    assert found.others > 0.4 or (found.waiting or 0) > 0.2
