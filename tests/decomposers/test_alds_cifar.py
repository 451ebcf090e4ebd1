"""Acceptance tests on the trained CIFAR-10 ResNets: scores and choices of the published search, and the exact optimum.

The lists (k x j @ score, `-` dense) were measured by running the reference implementation at 50 % of the parameters;
the scores of conv layers in `SPECTRA` by an independent float64 script.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from decomposers import alds
from decomposers.folding import Form
from decomposers.layers import find_layers, weight_of
from decomposers.options import AldsOptions
from decomposers.spectra import spectra
from tests.decomposers.nets import cifar_resnet, counted_macs

EXAMPLE = torch.zeros(1, 3, 32, 32)

REFERENCE = {
    20: """
conv1:3x4@0.1930 L1.0.c1:16x4@0.2065 L1.0.c2:4x7@0.1957 L1.1.c1:8x8@0.1938 L1.1.c2:8x6@0.2018 L1.2.c1:4x8@0.2070
L1.2.c2:16x3@0.1829 L2.0.c1:4x13@0.2024 L2.0.c2:16x7@0.1950 L2.1.c1:16x8@0.1995 L2.1.c2:16x7@0.2027
L2.2.c1:16x7@0.2108 L2.2.c2:16x7@0.1807 L3.0.c1:16x7@0.1928 L3.0.c2:16x14@0.2126 L3.1.c1:32x9@0.2058
L3.1.c2:32x6@0.1992 L3.2.c1:32x5@0.2119 L3.2.c2:16x4@0.1960 linear:-
""",
    56: """
conv1:3x4@0.1874 L1.0.c1:8x4@0.2159 L1.0.c2:4x8@0.2081 L1.1.c1:8x5@0.2172 L1.1.c2:8x6@0.1937 L1.2.c1:8x5@0.2155
L1.2.c2:16x3@0.1921 L1.3.c1:8x5@0.2063 L1.3.c2:16x3@0.2005 L1.4.c1:8x6@0.1816 L1.4.c2:16x4@0.1920 L1.5.c1:8x5@0.2096
L1.5.c2:8x6@0.2062 L1.6.c1:8x6@0.2164 L1.6.c2:16x2@0.2007 L1.7.c1:8x5@0.2082 L1.7.c2:16x3@0.2014 L1.8.c1:4x7@0.2074
L1.8.c2:8x4@0.1835 L2.0.c1:16x4@0.1925 L2.0.c2:16x7@0.2142 L2.1.c1:16x9@0.1856 L2.1.c2:32x4@0.1767
L2.2.c1:16x8@0.2083 L2.2.c2:32x4@0.1750 L2.3.c1:8x12@0.2146 L2.3.c2:32x4@0.1749 L2.4.c1:32x5@0.1829
L2.4.c2:16x7@0.1855 L2.5.c1:16x7@0.2197 L2.5.c2:16x7@0.1964 L2.6.c1:8x12@0.2111 L2.6.c2:16x7@0.2169
L2.7.c1:32x4@0.2148 L2.7.c2:8x11@0.2081 L2.8.c1:8x12@0.2079 L2.8.c2:16x4@0.2120 L3.0.c1:32x4@0.1986
L3.0.c2:32x7@0.2170 L3.1.c1:16x17@0.2097 L3.1.c2:32x7@0.2162 L3.2.c1:16x15@0.2188 L3.2.c2:32x6@0.2183
L3.3.c1:16x17@0.2068 L3.3.c2:32x7@0.2006 L3.4.c1:32x9@0.2196 L3.4.c2:32x5@0.2006 L3.5.c1:16x15@0.2141
L3.5.c2:32x5@0.2120 L3.6.c1:32x6@0.2198 L3.6.c2:32x5@0.1968 L3.7.c1:16x8@0.2194 L3.7.c2:16x5@0.2153
L3.8.c1:16x4@0.2005 L3.8.c2:8x6@0.2193 linear:-
""",
}
EXACT = {
    20: """
L1.0.c2:8x5@0.2002 L1.1.c2:16x4@0.2053 L1.2.c1:8x6@0.2016 L2.0.c2:32x4@0.1903 L2.2.c1:16x8@0.1904
L2.2.c2:32x4@0.2026 L3.0.c2:32x8@0.2092 L3.2.c1:32x6@0.1974 L3.2.c2:64x1@0.1963
""",
    56: """
L1.0.c2:16x4@0.1988 L1.1.c1:8x6@0.1799 L1.1.c2:16x4@0.1969 L2.0.c2:32x4@0.1873 L2.1.c1:32x5@0.1965
L2.1.c2:16x6@0.2041 L2.2.c2:16x6@0.2078 L2.3.c2:16x6@0.1913 L2.4.c1:16x8@0.1994 L2.4.c2:32x4@0.2137
L2.5.c1:16x8@0.2032 L2.5.c2:32x4@0.1940 L2.7.c2:16x7@0.2003 L3.0.c1:16x7@0.1905 L3.2.c1:16x16@0.2047
L3.2.c2:16x11@0.2155 L3.3.c1:32x10@0.2157 L3.4.c1:16x16@0.2146 L3.5.c1:64x5@0.2127 L3.6.c1:16x11@0.2089
L3.7.c1:32x5@0.1951 L3.7.c2:32x3@0.1837 L3.8.c1:32x2@0.1990 L3.8.c2:64x1@0.1720
""",
}
SPECTRA = {
    ("conv1", 1): (0.922305, 0.842852, 0.615179, 0.595280),
    ("conv1", 3): (0.581913, 0.442652, 0.412704, 0.193010),
    ("layer1.0.conv1", 1): (0.786458, 0.720851, 0.664087, 0.570941),
    ("layer1.0.conv1", 16): (0.390395, 0.273935, 0.216384, 0.206511),
    ("layer3.2.conv1", 1): (0.807495, 0.795847, 0.784405, 0.758542),
    ("layer3.2.conv1", 32): (0.350215, 0.297400, 0.270714, 0.244340),
    ("layer3.2.conv2", 1): (0.966437, 0.914590, 0.886984, 0.854855),
    ("layer3.2.conv2", 64): (0.196301, 0.127685, 0.079497, 0.066230),
}
SOLVED = (  # depth, kept share, budget, max score, layer that sets it, compressible size, params, MACs
    (20, 0.7, 187_419, 0.1567595987, "layer2.1.conv1", 187_255, 188_641, 31_639_168),
    (20, 0.5, 133_475, 0.2092339507, "layer3.0.conv2", 132_892, 134_278, 24_164_992),
    (20, 0.3, 79_530, 0.2930823625, "layer3.1.conv2", 78_812, 80_198, 15_420_032),
    (56, 0.7, 593_038, 0.1603173550, "layer3.7.conv2", 591_063, 595_137, 95_698_560),
    (56, 0.5, 422_435, 0.2170032232, "layer3.0.conv2", 421_260, 425_334, 69_786_240),
    (56, 0.3, 251_831, 0.2922665152, "layer3.0.conv2", 251_100, 255_174, 45_038_208),
)
REFERENCE_SIZE = {20: (133_468, 0.2126431), 56: (421_148, 0.2198050)}
COMPRESSIBLE = {20: 268_336, 56: 848_944}
DENSE_MACS = {20: 40_551_040, 56: 125_485_696}


def parse(text: str) -> dict[str, tuple[Form, float] | None]:
    """
    Read `L1.0.c1:16x4@0.2065` as layer1.0.conv1: 16 slices of rank 4 with that score.
    """
    found: dict[str, tuple[Form, float] | None] = {}
    for item in text.split():
        short, _, choice = item.partition(":")
        name = re.sub(r"\.c(\d)$", r".conv\1", re.sub(r"^L", "layer", short))
        form = re.fullmatch(r"(\d+)x(\d+)@([\d.]+)", choice)
        found[name] = (Form(0, int(form[1]), int(form[2])), float(form[3])) if form else None
    return found


@pytest.fixture(scope="module", params=[20, 56])
def depth(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def model(depth: int, shared_data: Path) -> nn.Module:
    return cifar_resnet(depth, shared_data)


@pytest.fixture(scope="module")
def analysis(model: nn.Module) -> alds.Analysis:
    return alds.analyse(model, EXAMPLE, AldsOptions(spend=False))


def budget_for(analysis: alds.Analysis, compressible: int) -> int:
    return compressible + analysis.structure.params - sum(int(table.weights[0]) for table in analysis.tables)


def test_dense_sizes_are_the_published_ones(analysis: alds.Analysis, depth: int) -> None:
    assert sum(int(table.weights[0]) for table in analysis.tables) == COMPRESSIBLE[depth]
    assert analysis.structure.macs == DENSE_MACS[depth]
    assert analysis.structure.skipped == ()


def test_every_score_of_the_reference_lists(analysis: alds.Analysis, depth: int) -> None:
    wanted = parse(REFERENCE[depth])
    assert set(wanted) == {table.layer.name for table in analysis.tables}
    for table in analysis.tables:
        for choices in (wanted, parse(EXACT[depth])):
            choice = choices.get(table.layer.name)
            if choice is not None:
                assert table.score[table.row_of(choice[0])] == pytest.approx(choice[1], abs=6e-5)


def test_exact_choices_are_the_published_lists(analysis: alds.Analysis, depth: int) -> None:
    wanted = parse(REFERENCE[depth]) | parse(EXACT[depth])
    plan = alds.choose(analysis, budget=budget_for(analysis, {20: 133_475, 56: 422_435}[depth]))
    assert {layer.name: layer.form for layer in plan.layers} == {n: c[0] for n, c in wanted.items() if c}
    assert [layer.name for layer in plan.kept] == ["linear"]


def test_optimum_at_three_budgets(analysis: alds.Analysis, depth: int) -> None:
    for case in SOLVED:
        if case[0] != depth:
            continue
        _, share, budget, score, setter, size, params, macs = case
        assert int(share * analysis.structure.params) == budget_for(analysis, budget)
        plan = alds.choose(analysis, budget=budget_for(analysis, budget))
        assert plan.max_score == pytest.approx(score, abs=1e-9)
        assert [layer.name for layer in plan.layers if layer.score == plan.max_score] == [setter]
        assert budget_for(analysis, size) == plan.params_after == params
        assert plan.macs_after == macs


def test_no_worse_than_the_reference_at_its_own_size(analysis: alds.Analysis, depth: int) -> None:
    size, score = REFERENCE_SIZE[depth]
    plan = alds.choose(analysis, budget=budget_for(analysis, size))
    assert plan.max_score <= score
    assert plan.max_score == pytest.approx({20: 0.2092340, 56: 0.2170526}[depth], abs=1e-7)
    assert plan.params_after <= budget_for(analysis, size)


def test_one_slice_only(model: nn.Module, depth: int) -> None:
    budget, score, size = {20: (133_475, 0.5360260, 133_047), 56: (422_435, 0.5013140, 422_391)}[depth]
    analysis = alds.analyse(model, EXAMPLE, AldsOptions(spend=False, max_groups=1))
    plan = alds.choose(analysis, budget=budget_for(analysis, budget))
    assert plan.max_score == pytest.approx(score, abs=1e-6)
    assert plan.params_after == budget_for(analysis, size)


def test_slices_of_the_classifier_when_allowed(shared_data: Path) -> None:
    analysis = alds.analyse(cifar_resnet(20, shared_data), EXAMPLE, AldsOptions(spend=False, linear_groups=True))
    plan = alds.choose(analysis, budget=budget_for(analysis, 79_530))
    assert next(layer.form for layer in plan.layers if layer.name == "linear") == Form(0, 8, 4)
    assert (plan.params_after, plan.macs_after) == (budget_for(analysis, 78_748), 15_419_968)


def test_same_plan_with_two_threads(shared_data: Path) -> None:
    model, threads = cifar_resnet(20, shared_data), torch.get_num_threads()
    plans = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            analysis = alds.analyse(model, EXAMPLE, AldsOptions())
            plans.append(alds.choose(analysis, budget=analysis.structure.params * 0.5))
    finally:
        torch.set_num_threads(threads)
    assert [layer.form for layer in plans[0].layers] == [layer.form for layer in plans[1].layers]


def test_spectrum_oracles(shared_data: Path) -> None:
    model = cifar_resnet(20, shared_data)
    layers = {layer.name: layer for layer in find_layers(model, EXAMPLE).layers}
    for (name, groups), scores in SPECTRA.items():
        found = spectra(weight_of(model, layers[name]), layers[name].shape)
        score = next(item.score for item in found if item.groups == groups)
        assert score[1:5] == pytest.approx(scores, abs=6e-7)


def test_decomposed_network_is_proved_and_counted(shared_data: Path) -> None:
    model, small = cifar_resnet(20, shared_data), cifar_resnet(20, shared_data)
    plan = alds.plan(model, EXAMPLE, budget=134_861)
    alds.apply_(small, plan)
    assert alds.prove(model, small, plan, EXAMPLE + 0.5).network < 1e-4
    assert sum(parameter.numel() for parameter in small.parameters()) == plan.params_after <= 134_861
    assert counted_macs(small, EXAMPLE) == plan.macs_after
