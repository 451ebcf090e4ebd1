"""Channel pruning of any traceable model: find what must go together, remove it, prove that nothing else changed.

groups = analyse(model, example_inputs)
plan = make_plan(groups, {"layer1.0.conv1": [3, 5]})
small = copy.deepcopy(model)
apply_(small, plan)
prove(model, small, plan, example_inputs, groups=groups).require()
"""

from __future__ import annotations

from pruners.channels.api import apply_, restructure_
from pruners.channels.cost import CostModel, Saving
from pruners.channels.errors import (
    BadChannelOptions,
    BadChannelsPlan,
    CannotTrace,
    ChannelsMismatch,
    InfeasibleBudget,
    NothingToRemove,
    ProofFailed,
    SurgeryFailed,
)
from pruners.channels.groups import Frozen, Group, Groups, Member, analyse
from pruners.channels.masks import masked, zero_
from pruners.channels.plan_type import AttributeEdit, ChannelsPlan, GroupCut
from pruners.channels.planning import make_plan
from pruners.channels.proofs import Check, Proof, prove
from pruners.channels.tracing import Entry

__all__ = [
    "AttributeEdit",
    "BadChannelOptions",
    "BadChannelsPlan",
    "CannotTrace",
    "ChannelsMismatch",
    "ChannelsPlan",
    "Check",
    "CostModel",
    "Entry",
    "Frozen",
    "Group",
    "GroupCut",
    "Groups",
    "InfeasibleBudget",
    "Member",
    "NothingToRemove",
    "Proof",
    "ProofFailed",
    "Saving",
    "SurgeryFailed",
    "analyse",
    "apply_",
    "make_plan",
    "masked",
    "prove",
    "restructure_",
    "zero_",
]
