"""What is solved for: each stored weight of the compressed network beside the original's layer, with its bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from compress_cli.recovery.correspondence import Correspondence
from compress_cli.recovery.errors import DoNotMatch
from compress_cli.recovery.residual import Sum, find_sum, is_fixed_norm, only_user
from compress_cli.recovery.trace import Call, Traced, _arguments


@dataclass(frozen=True, slots=True)
class Offset:
    """Where a constant added to a layer's output is stored.

    Attributes:
        name: of the bias, or of the running mean of the batch norm that follows.
        sign: +1 for a bias; -1 for a mean, which is subtracted.
    """

    name: str
    sign: int


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One call of the weight in both networks, and the sums that the two calls end in."""

    original: Call
    compressed: Call
    sums: tuple[Sum, Sum] | None


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One least-squares problem.

    Attributes:
        name: the weight in the compressed network.
        uses: all calls of that weight; several when it is shared.
        offset: where the constant column's coefficient goes; None when nothing can hold it.
        kept: indices of the original's output channels that remain; None for all.
    """

    name: str
    uses: tuple[Use, ...]
    offset: Offset | None
    kept: Tensor | None

    @property
    def compressed_nodes(self) -> list[Node]:
        """The operators that change when the weight does."""
        return [use.compressed.node for use in self.uses]

    @property
    def original_nodes(self) -> list[Node]:
        """The same operators in the original."""
        return [use.original.node for use in self.uses]


def make_jobs(
    original: Traced, compressed: Traced, correspondence: Correspondence
) -> tuple[list[Job], list[tuple[str, str]]]:
    """Pair the layers of two networks.

    Returns:
        Jobs in the execution order of the compressed network, and (weight, reason) of what is left alone.

    Raises:
        DoNotMatch: nothing pairs up, or an output size that nobody announced.
    """
    theirs, ours = _by_weight(original.calls()), _by_weight(compressed.calls())
    present = list(ours)
    jobs, skipped = [], []
    for weight, calls in theirs.items():
        partner = correspondence.partner(weight, present)
        reason = _reason(weight, partner, calls, ours, correspondence)
        if reason is None and partner is not None:
            jobs.append(_job(original, compressed, calls, ours[partner], correspondence))
        else:
            skipped.append((weight, reason or "not in the compressed network"))
    if not jobs:
        raise DoNotMatch("no layer of the original network has a counterpart in the compressed one")
    jobs.sort(key=lambda job: min(compressed.place[node] for node in job.compressed_nodes))
    return jobs, skipped


def _by_weight(calls: Sequence[Call]) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {}
    for call in calls:
        found.setdefault(call.weight, []).append(call)
    return found


def _reason(
    weight: str,
    partner: str | None,
    calls: Sequence[Call],
    ours: dict[str, list[Call]],
    correspondence: Correspondence,
) -> str | None:
    if partner is None:
        return "not in the compressed network"
    if correspondence.leaves_alone(weight) or correspondence.leaves_alone(partner):
        return "ignored"
    if len(ours[partner]) != len(calls):
        return f"used {len(calls)} times in the original and {len(ours[partner])} times in the compressed network"
    return None


def _job(
    original: Traced, compressed: Traced, theirs: list[Call], ours: list[Call], correspondence: Correspondence
) -> Job:
    uses = []
    for their, our in zip(theirs, ours, strict=True):
        sums = (find_sum(original, their.node), find_sum(compressed, our.node))
        both = sums[0] is not None and sums[1] is not None
        uses.append(Use(their, our, sums if both else None))  # type: ignore[arg-type]
    kept = correspondence.kept(theirs[0].weight, 1 if theirs[0].geometry.kind == "transposed" else 0)
    _check_outputs(theirs[0], ours[0], kept)
    indices = None if kept is None else torch.as_tensor(list(kept), dtype=torch.int64)
    return Job(ours[0].weight, tuple(uses), output_offset(compressed, ours), indices)


def _check_outputs(their: Call, our: Call, kept: Sequence[int] | None) -> None:
    before = their.node.meta["val"].shape[their.geometry.channel_axis]
    after = our.node.meta["val"].shape[our.geometry.channel_axis]
    expected = before if kept is None else len(kept)
    if after != expected:
        what = "are all expected" if kept is None else f"{expected} are announced"
        raise DoNotMatch(f"{our.weight} gives {after} of the original's {before} output channels, but {what}")
    if kept is not None and expected and not 0 <= min(kept) <= max(kept) < before:
        raise DoNotMatch(f"{our.weight}: the kept output channels are not among the original's {before}")


def output_offset(compressed: Traced, calls: Sequence[Call]) -> Offset | None:
    """Where a constant can go: the bias all calls share, or the mean of the one norm that follows the one call."""
    biases = {call.bias for call in calls}
    if biases != {None}:
        name = next(iter(biases))
        if len(biases) > 1 or name is None:
            return None
        users = [call for call in compressed.calls() if call.bias == name]
        return Offset(name, 1) if len(users) == len(calls) else None
    if len(calls) > 1:
        return None
    norm = only_user(calls[0].node)
    if norm is None or not is_fixed_norm(compressed, norm) or norm.args[0] is not calls[0].node:
        return None
    mean = compressed.tensor_name(_arguments(norm)["running_mean"])
    readers = [
        node
        for node in compressed.nodes
        for source in node.all_input_nodes
        if mean is not None and compressed.tensor_name(source) == mean
    ]
    return Offset(mean, -1) if mean is not None and len(readers) == 1 else None
