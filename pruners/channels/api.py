"""Plan, apply and rebuild: the entry points that change a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pruners.channels.fitting import repeat_graph_
from pruners.channels.plan_type import ChannelsPlan
from pruners.channels.surgery import check_fits, cut_


def apply_(model: nn.Module, plan: ChannelsPlan) -> None:
    """Remove the planned channels from a model in place.

    A plan of tier 4 traces the model once more, and gives the object a subclass of its own class.

    Raises:
        ChannelsMismatch: another architecture; nothing was changed.
    """
    if plan.tier == 4:
        check_fits(model, plan)
        repeat_graph_(model, plan)
    else:
        cut_(model, plan)


def restructure_(module: nn.Module, plan: Mapping[str, Any]) -> None:
    """Give a freshly built module the widths of a recorded plan; its weights are loaded afterwards.

    Raises:
        BadChannelsPlan: not a channels plan.
        ChannelsMismatch: another architecture; nothing was changed.
    """
    apply_(module, ChannelsPlan.from_dict(plan))
