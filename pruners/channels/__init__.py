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
from pruners.channels.describe import describe
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
from pruners.channels.fitting import Fitted, fit
from pruners.channels.groups import Frozen, Group, Groups, Member, analyse
from pruners.channels.masks import masked, zero_
from pruners.channels.measuring import measured
from pruners.channels.plan_type import AttributeEdit, ChannelsPlan, GroupCut
from pruners.channels.planning import make_plan
from pruners.channels.proofs import Check, Proof, prove
from pruners.channels.scores import (
    Normaliser,
    ScoreName,
    ScoreOptions,
    Scores,
    mean_gradients,
    mean_squared_gradients,
    score,
)
from pruners.channels.selection import Budget, SelectionOptions, plan, select, select_share
from pruners.channels.tracing import Entry

__all__ = [
    "AttributeEdit",
    "BadChannelOptions",
    "BadChannelsPlan",
    "Budget",
    "CannotTrace",
    "ChannelsMismatch",
    "ChannelsPlan",
    "Check",
    "CostModel",
    "Entry",
    "Fitted",
    "Frozen",
    "Group",
    "GroupCut",
    "Groups",
    "InfeasibleBudget",
    "Member",
    "Normaliser",
    "NothingToRemove",
    "Proof",
    "ProofFailed",
    "Saving",
    "ScoreName",
    "ScoreOptions",
    "Scores",
    "SelectionOptions",
    "SurgeryFailed",
    "analyse",
    "apply_",
    "describe",
    "fit",
    "make_plan",
    "masked",
    "mean_gradients",
    "mean_squared_gradients",
    "measured",
    "plan",
    "prove",
    "restructure_",
    "score",
    "select",
    "select_share",
    "zero_",
]
