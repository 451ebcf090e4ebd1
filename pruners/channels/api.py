"""Plan, apply and rebuild: the entry points that change a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pruners.channels.emission import example_from
from pruners.channels.errors import SurgeryFailed
from pruners.channels.fitting import repeat_graph_
from pruners.channels.plan_type import ChannelsPlan
from pruners.channels.proofs import prove
from pruners.channels.surgery import check_fits, cut_


def apply_(model: nn.Module, plan: ChannelsPlan, example_inputs: Sequence[Any] | None = None) -> None:
    """Remove the planned channels from a model in place.

    A plan of tier 4 traces the model once more, and gives the object a subclass of its own class. A plan that `fit` has
    not proved (from `make_plan`) is proved on a copy first: sizes written into the model's code may not bear the cut.

    Args:
        example_inputs: for that proof; random tensors of the recorded shapes when not given.

    Raises:
        ChannelsMismatch: another architecture; nothing was changed.
        SurgeryFailed: the cut cannot be proved; nothing was changed.
    """
    if plan.tier == 4:
        check_fits(model, plan)
        repeat_graph_(model, plan)
        return
    if not plan.proved and plan.keep:
        check_fits(model, plan)
        _require_proof(model, plan, example_inputs if example_inputs is not None else _example(plan))
    cut_(model, plan)


def _require_proof(model: nn.Module, plan: ChannelsPlan, inputs: Sequence[Any]) -> None:
    small = copy.deepcopy(model)
    cut_(small, plan)
    for check in prove(model, small, plan, inputs).checks:
        if not check.passed:
            advice = "pruners.channels.fit finds a way of cutting that holds"
            raise SurgeryFailed(plan.tier, f"{check.name}: {check.detail}; {advice}")


def _example(plan: ChannelsPlan) -> tuple[Any, ...]:
    """Random inputs of the shapes that the plan's analysis saw in eval mode."""
    text = next((entry for entry in plan.entries if entry.startswith("eval(")), "eval()")
    shapes = [item if item.endswith("]") else f"{item}]" for item in text[5:-1].split("], ") if item]
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(zeros.shape, generator=generator).to(zeros.dtype) if zeros.is_floating_point() else zeros
        for zeros in example_from(shapes)
    )


def restructure_(module: nn.Module, plan: Mapping[str, Any]) -> None:
    """Give a freshly built module the widths of a recorded plan; its weights are loaded afterwards.

    Raises:
        BadChannelsPlan: not a channels plan.
        ChannelsMismatch: another architecture; nothing was changed.
    """
    apply_(module, replace(ChannelsPlan.from_dict(plan), proved=True))  # the weights that were proved come later
