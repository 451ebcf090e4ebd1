"""The JSON line of a runner, the command template, and programs that misbehave."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from profilers.runners.command import CommandRunner, fill
from profilers.runners.result import RunnerFailed, RunnerResult, Settings, merge, parse_line

LINE = '{"min_ms": 4.11, "median_ms": 4.15, "p90_ms": 4.31, "peak_rss_mb": 58.2, "device": "Pi", "threads": 1, "x": 2}'
QUICK = Settings(iterations=8, timeout_s=30)


def test_the_line_of_the_specification() -> None:
    found = parse_line(f"loading...\n{LINE}\nbye", "a.onnx")
    assert (found.min_ms, found.median_ms, found.p90_ms, found.peak_rss_mb) == (4.11, 4.15, 4.31, 58.2)
    assert (found.device, found.threads, found.runtime, found.iterations) == ("Pi", 1, None, None)
    assert found.extra == {"x": 2}
    assert found.best_ms == 4.11


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nothing here", "no JSON line"),
        ('{"broken": ', "no JSON line"),
        ("[1, 2]", "no JSON line"),
        ('{"min_ms": 1.0}', "lacks `device` or `threads`"),
        ('{"device": "Pi", "threads": "two", "min_ms": 1}', "lacks `device` or `threads`"),
        ('{"device": "Pi", "threads": 1}', "neither `min_ms` nor `median_ms`"),
        ('{"device": "Pi", "threads": 1, "min_ms": "fast"}', "`min_ms` in its JSON line is no positive number"),
        ('{"device": "Pi", "threads": 1, "min_ms": -1}', "no positive number: -1"),
        ('{"device": "Pi", "threads": 1, "min_ms": NaN}', "no positive number"),
    ],
)
def test_bad_lines_are_refused(text: str, reason: str) -> None:
    with pytest.raises(RunnerFailed, match=reason):
        parse_line(text, "a.onnx")


def test_template_arguments_are_never_split() -> None:
    template = ["bench", "--in={model}", "{threads}", "$HOME;ls"]
    assert fill(template, {"model": "my net.onnx", "threads": "4"}) == ["bench", "--in=my net.onnx", "4", "$HOME;ls"]
    with pytest.raises(ValueError, match=r"unknown placeholder \{modle\}"):
        fill(["bench", "{modle}"], {})
    with pytest.raises(ValueError, match=r"no \{model\}"):
        fill(["bench"], {})


def program(tmp_path: Path, body: str) -> tuple[str, ...]:
    path = tmp_path / "bench.py"
    path.write_text(f"import json, sys, time\n{body}\n", encoding="utf-8")
    return (sys.executable, str(path), "{model}", "{threads}", "{iterations}", "{input_shape}")


def test_a_declared_target_runs_both_models_in_turn(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    body = (
        f"open({str(log)!r}, 'a').write(sys.argv[1] + ' ')\n"
        "ms = {'a': 4.0, 'b': 2.0}[sys.argv[1]] + len(open(%r).read()) / 1000\n"
        % str(log)
        + "print('noise'); print(json.dumps({'device': 'toy', 'threads': int(sys.argv[2]), 'min_ms': ms,"
        " 'iterations': int(sys.argv[3]), 'shape': sys.argv[4]}))"
    )
    runner = CommandRunner("toy", program(tmp_path, body), input_shape="1x3x8x8")
    first, second = runner.measure([Path("a"), Path("b")], QUICK)
    assert log.read_text() == "a b b a a b b a "
    assert (first.min_ms, second.min_ms) == (4.002, 2.004)  # the fastest of four rounds
    assert (first.iterations, first.extra) == (8, {"shape": "1x3x8x8"})


def test_failures_carry_the_last_lines(tmp_path: Path) -> None:
    crash = CommandRunner("toy", program(tmp_path, "print('first'); sys.exit('out of memory')"))
    with pytest.raises(RunnerFailed, match="the command of toy ended with status 1") as failure:
        crash.measure([Path("a")], QUICK)
    assert failure.value.log.splitlines() == ["first", "out of memory"]
    slow = CommandRunner("toy", program(tmp_path, "time.sleep(60)"))
    with pytest.raises(RunnerFailed, match=r"took longer than 0\.2 s"):
        slow.measure([Path("a")], Settings(timeout_s=0.2))
    with pytest.raises(RunnerFailed, match="no-such-program is not there"):
        CommandRunner("toy", ("no-such-program", "{model}")).measure([Path("a")], QUICK)


def test_rounds_merge_without_inventing_numbers() -> None:
    rows = [
        RunnerResult("a", "Pi", 1, min_ms=2.0, median_ms=3.0, iterations=5),
        RunnerResult("a", "Pi", 1, min_ms=1.0, median_ms=5.0, iterations=5),
    ]
    found = merge(rows)
    assert (found.min_ms, found.median_ms, found.iterations) == (1.0, 4.0, 10)
    assert (found.p90_ms, found.peak_rss_mb, found.load_ms) == (None, None, None)
    assert json.dumps(found.to_dict())
