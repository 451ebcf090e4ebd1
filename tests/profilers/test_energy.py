"""Energy per run from counters under a powercap folder: sums, wrapping, and nothing where nothing is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from profilers.energy import counters, joules_per_run


def package(folder: Path, name: str, energy: int, largest: int = 10_000_000) -> Path:
    path = folder / name
    path.mkdir()
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{largest}\n")
    return path


def using(*paths: Path, microjoules: int) -> Callable[[], None]:
    """A run that adds to every counter, each starting again from 0 at ten joules."""

    def run() -> None:
        for path in paths:
            file = path / "energy_uj"
            file.write_text(str((int(file.read_text()) + microjoules) % 10_000_000))

    return run


def test_packages_are_summed_and_parts_left_out(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 5), package(tmp_path, "intel-rapl:1", 7)
    core = package(tmp_path, "intel-rapl:0:0", 1)
    assert [counter.path for counter in counters(tmp_path)] == [first, second]
    run = using(first, second, core, microjoules=300_000)
    assert joules_per_run(run, seconds=0.0, folder=tmp_path) == pytest.approx(0.6)


def test_a_counter_that_starts_again(tmp_path: Path) -> None:
    only = package(tmp_path, "intel-rapl:0", 9_900_000)
    assert joules_per_run(using(only, microjoules=250_000), seconds=0.0, folder=tmp_path) == pytest.approx(0.25)


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    assert joules_per_run(lambda: None, seconds=0.0, folder=tmp_path) is None
    broken = package(tmp_path, "intel-rapl:0", 1)
    (broken / "energy_uj").write_text("locked")
    assert counters(tmp_path) == ()
