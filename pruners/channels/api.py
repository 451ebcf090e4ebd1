"""Plan, apply and rebuild: the entry points that change a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pruners.channels.plan_type import ChannelsPlan
from pruners.channels.surgery import cut_


def apply_(model: nn.Module, plan: ChannelsPlan) -> None:
    """Remove the planned channels from a model in place.

    Raises:
        ChannelsMismatch: another architecture; nothing was changed.
    """
    cut_(model, plan)


def restructure_(module: nn.Module, plan: Mapping[str, Any]) -> None:
    """Give a freshly built module the widths of a recorded plan; its weights are loaded afterwards.

    Raises:
        BadChannelsPlan: not a channels plan.
        ChannelsMismatch: another architecture; nothing was changed.
    """
    apply_(module, ChannelsPlan.from_dict(plan))
