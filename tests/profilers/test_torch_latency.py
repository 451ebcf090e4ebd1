"""PyTorch modules timed like files: structure, ordering and an untouched model; on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from profilers.errors import MeasurementFailed
from profilers.latency import Timed, compare_runs
from profilers.torch_latency import compare_modules


def net(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


def test_two_modules_on_the_cpu() -> None:
    wide, narrow = net(96).train(), net(2).eval()
    found = compare_modules([wide, narrow], (torch.rand(2, 3, 32, 32),), budget_s=0.2)
    assert found.ratio is not None
    assert found.ratio < 1
    assert [row.batch for row in found.latencies] == [2, 2]
    assert found.latencies[0].provider == "torch eager on cpu"
    assert (wide.training, wide[1].training, narrow.training) == (True, True, False)


def test_a_device_clock_is_used_where_there_is_one() -> None:
    found = compare_runs(
        [Timed("original", object, clock=lambda: 0.004), Timed("compressed", object, clock=lambda: 0.001)],
        provider="fake",
        threads=1,
        batch=1,
        budget_s=0.01,
    )
    assert [row.p50_ms for row in found.latencies] == [4.0, 1.0]
    assert (found.ratio, found.ratio_low, found.ratio_high) == (0.25, 0.25, 0.25)


def test_models_that_do_not_run_are_refused() -> None:
    with pytest.raises(MeasurementFailed, match="the compressed model does not run"):
        compare_modules([net(2)], (torch.rand(1, 4, 8, 8),))


@pytest.mark.gpu
def test_eager_and_compiled_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    for compiled in (False, True):
        found = compare_modules([net(256), net(8)], (torch.rand(8, 3, 64, 64),), device="cuda", compiled=compiled)
        assert found.ratio is not None
        assert found.ratio < 1


def test_no_gpu_is_said_clearly() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(MeasurementFailed, match="sees no CUDA device"):
        compare_modules([net(2)], (torch.rand(1, 3, 8, 8),), device="cuda")
