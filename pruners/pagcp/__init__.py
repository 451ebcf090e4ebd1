"""Channel pruning of networks with several tasks: no single task gets worse than allowed.

data = TaskData(batches, forward, losses, floors)
found = plan(model, example_inputs, data, PagcpOptions(max_rise={"seg": 0.03, "depth": 0.05}))
pruners.channels.apply_(model, found.plan)
"""

from __future__ import annotations

from pruners.pagcp.api import plan, sensitivity
from pruners.pagcp.budgets import Tolerances, decay_of, first_of, suggested_first, tolerances
from pruners.pagcp.checking import final_check
from pruners.pagcp.options import PagcpOptions, reference
from pruners.pagcp.oracle import Oracle, Verdict, make_oracle, reestimate_batchnorm_
from pruners.pagcp.path import Cut, cut_path
from pruners.pagcp.ranking import Path, make_path, worst_task
from pruners.pagcp.result import FinalCheck, Found, SearchRecord, Sensitivity, Step
from pruners.pagcp.scores import fisher_scores, l1_scores
from pruners.pagcp.sweep import Swept, sweep
from pruners.pagcp.tasks import TaskData, constant_floors, evaluate

__all__ = [
    "Cut",
    "FinalCheck",
    "Found",
    "Oracle",
    "PagcpOptions",
    "Path",
    "SearchRecord",
    "Sensitivity",
    "Step",
    "Swept",
    "TaskData",
    "Tolerances",
    "Verdict",
    "constant_floors",
    "cut_path",
    "decay_of",
    "evaluate",
    "final_check",
    "first_of",
    "fisher_scores",
    "l1_scores",
    "make_oracle",
    "make_path",
    "plan",
    "reestimate_batchnorm_",
    "reference",
    "sensitivity",
    "suggested_first",
    "sweep",
    "tolerances",
    "worst_task",
]
