"""Timing graphs: equal to the torch layers they stand for, candidates spread over the MACs, and who is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from compress_cli.methods import layer_timings
from compress_cli.methods.layer_timings import (
    MULTIPLE,
    forms_to_try,
    measure_forms,
    onnx_chain,
    slower_than_dense,
)
from decomposers import alds
from decomposers.factorize import build_pair
from decomposers.folding import Form
from decomposers.options import AldsOptions


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding="same"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 40),
    ).eval()


IMAGE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("layer", "form", "size"),
    [
        (nn.Conv2d(8, 6, 3, stride=2, padding=1), None, (2, 8, 9, 9)),
        (nn.Conv2d(8, 6, 3, dilation=2, padding=2, bias=False), Form(0, 4, 2), (1, 8, 9, 9)),
        (nn.Conv2d(8, 6, 3, stride=2, padding=1), Form(1, 2, 3), (1, 8, 9, 9)),
        (nn.Linear(8, 6), Form(0, 1, 3), (2, 8)),
        (nn.Linear(8, 6, bias=False), None, (2, 5, 8)),
    ],
)
def test_timed_graph_computes_the_layers(layer: Any, form: Form | None, size: tuple[int, ...]) -> None:
    halves = [layer] if form is None else list(build_pair(layer, form, layer.bias is not None))
    model = onnx_chain(halves, size, np.random.default_rng(0))
    tensors = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in model.graph.initializer}
    with torch.no_grad():
        for index, half in enumerate(halves):
            weight = tensors[f"w{index}"]
            half.weight.copy_(weight.T if isinstance(half, nn.Linear) else weight)
            if half.bias is not None:
                half.bias.zero_()
    sample = torch.randn(size)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": sample.numpy()})
    assert torch.allclose(torch.from_numpy(found), nn.Sequential(*halves)(sample), atol=1e-4)


def test_candidates_are_options_of_the_layer_in_steps_of_eight() -> None:
    analysis = alds.analyse(net(), IMAGE, AldsOptions(max_groups=2))
    for table in analysis.tables:
        tried = forms_to_try(table)
        assert len(set(tried)) == len(tried)
        for form in tried:
            assert table.row_of(form) > 0
            assert form.rank < MULTIPLE or form.rank % MULTIPLE == 0
    assert {form.groups for form in forms_to_try(analysis.tables[1])} == {1, 2}


def test_equal_layers_are_measured_once_and_unusual_ones_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    genuine = layer_timings._measure

    def watched(module: Any, table: Any, *more: Any) -> Any:
        measured.append(table.layer.name)
        return genuine(module, table, *more)

    monkeypatch.setattr(layer_timings, "_measure", watched)
    monkeypatch.setattr(layer_timings, "SECONDS_PER_LAYER", 0.01)
    model = net()
    analysis = alds.analyse(model, IMAGE, AldsOptions(max_groups=1))
    found = measure_forms(model, analysis)
    assert measured == ["0", "1", "6"]
    assert set(found) == {"0", "1", "2", "6"}
    assert found["1"] == found["2"]
    assert all(ms > 0 for times in found.values() for ms in times.values())
    assert all(None in times for times in found.values())
    dense = sum(times[None] for times in found.values())
    fastest = sum(min(times.values()) for times in found.values())
    plan = alds.choose(analysis, cost="ms", budget=(dense + fastest) / 2, total=dense, timings=found)
    saved = sum(found[layer.name][None] - found[layer.name][layer.form] for layer in plan.layers)
    assert dense - saved == pytest.approx(plan.planned)
    assert plan.planned <= (dense + fastest) / 2


def test_slow_forms_are_named() -> None:
    timings = {"a": {None: 2.0, Form(0, 4, 1): 3.0, Form(0, 1, 1): 1.0}}
    assert list(slower_than_dense(timings)) == [("a", Form(0, 4, 1))]
