"""What `compress inspect --groups` shows: groups, what one channel of each saves, and what stays with its reason."""

from __future__ import annotations

from typing import Any

from pruners.channels.cost import CostModel
from pruners.channels.groups import Groups
from pruners.channels.planning import frozen_summary


def describe(groups: Groups) -> dict[str, Any]:
    """The analysis as JSON-able data.

    Returns:
        `params`, `macs` (dense, of the example's batch), `units`; `groups`: name, units, what removing one channel
        saves now and what removing all but one would, members as [tensor, dim, indices per unit]; `frozen`: tensor,
        dim, count, size, reason, operator, source; `why`: [reason, tensors, channels]; `entries`, `refused`.
    """
    cost = CostModel(groups)
    rows = []
    for place, group in enumerate(groups.groups):
        one = cost.saving(place, 0)
        before = (cost.params, cost.macs)
        for unit in range(group.units - 1):
            cost.remove(place, unit)
        most = (before[0] - cost.params, before[1] - cost.macs)
        for unit in range(group.units - 1):
            cost.restore(place, unit)
        rows.append(
            {
                "name": group.name,
                "units": group.units,
                "params_per_unit": one.params,
                "macs_per_unit": one.macs,
                "params_at_most": most[0],
                "macs_at_most": most[1],
                "members": [[member.tensor, member.dim, int(member.index.shape[1])] for member in group.members],
            }
        )
    return {
        "params": cost.dense_params,
        "macs": cost.dense_macs,
        "units": groups.units,
        "groups": rows,
        "frozen": [
            {
                "tensor": item.tensor,
                "dim": item.dim,
                "count": item.count,
                "size": item.size,
                "reason": item.reason.text,
                "operator": item.reason.operator,
                "source": item.reason.source,
            }
            for item in groups.frozen
        ],
        "why": [list(row) for row in frozen_summary(groups)],
        "entries": [f"{entry.mode}({', '.join(entry.shapes())})" for entry in groups.entries],
        "refused": list(groups.refused),
    }
