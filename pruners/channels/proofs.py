"""Evidence that a small model is the original with channels masked; each proof names its own blind spot.

1. identity: the analysis is repeated on the small model, whose slices carry the ids of the original: equal ids must
   meet in equal order, and nothing may be missing where channels were frozen. Blind: tensors no forward reads.
2. masked: in float64, small model = dense model with the removed slices zeroed on both sides. Operators that count
   channels (norms, softmax, mean) are judged on the surviving ones.
3. permutation: permuting the units of every group of the dense model leaves its outputs where they were.
4. run: the train forward and backward of the small model work.
5. train: small model = masked dense model in train mode too, where that is not random (dropout modules are taken out);
   in float64, at a limit that only a wrong pairing reaches. Blind: what is random.

Differences are relative to max |y - mean y|, so that a common offset hides nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pruners.channels.atoms import named_tensors, tensor_at
from pruners.channels.detectors import traceable
from pruners.channels.errors import CannotTrace, ProofFailed
from pruners.channels.groups import Groups, analyse
from pruners.channels.labels import RESERVED, Ids, Labels, Reason
from pruners.channels.masks import zero_
from pruners.channels.not_zeroing import SINGLE, affected, evaluate_masked
from pruners.channels.plan_type import ChannelsPlan
from pruners.channels.planes import Scope
from pruners.channels.planning import kept_values, removed_roots
from pruners.channels.propagate import Trace, propagate, read_graph
from pruners.channels.tracing import doubled, mode_of, quiet

DOUBLE_LIMIT = 1e-9
TRAIN_LIMIT = 1e-6
NUDGE, UNSTABLE = 1e-10, 1e-4
"""A relative change of the inputs, and how little of the outputs' spread it must move for them to be compared."""
SINGLE_LIMIT = 1e-4
"""Where the code itself computes in float32, some 30 times the rounding of deep networks (RAFT: 3e-6)."""


@dataclass(frozen=True, slots=True)
class Check:
    """One proof's outcome; `value` <= `limit` where there is a figure."""

    name: str
    passed: bool
    detail: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """All checks that were made."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Every check passed."""
        return all(check.passed for check in self.checks)

    def require(self) -> Proof:
        """Return itself.

        Raises:
            ProofFailed: for the first check that did not pass.
        """
        for check in self.checks:
            if not check.passed:
                raise ProofFailed(check.name, check.detail)
        return self

    def to_dict(self) -> dict[str, Any]:
        """The checks as JSON-able data."""
        rows = [
            {"name": c.name, "passed": c.passed, "value": c.value, "limit": c.limit, "detail": c.detail}
            for c in self.checks
        ]
        return {"passed": self.passed, "checks": rows}


def prove(
    original: nn.Module,
    compressed: nn.Module,
    plan: ChannelsPlan,
    example_inputs: Sequence[Any],
    *,
    groups: Groups | None = None,
) -> Proof:
    """Compare a cut model with the original it was cut from; neither is changed.

    Args:
        groups: the analysis that the plan came from; made anew when not given.
    """
    compressed, _ = traceable(compressed, example_inputs)
    original, example_inputs = traceable(original, example_inputs)
    if groups is None:
        options = plan.options
        groups = analyse(original, example_inputs, ignore=options.get("ignore", ()), only=options.get("only", ()))
    chosen = {place: cut.removed for place, cut in enumerate(plan.groups) if cut.removed}
    gone = removed_roots(groups, chosen)
    checks = [masked_equivalence(original, compressed, plan, example_inputs, groups, gone)]
    checks.append(identity(compressed, plan, groups))
    if len(affected(groups, groups.traces[0], gone)):
        checks.append(permutation(original, example_inputs, groups))
    if any(entry.mode == "train" for entry in groups.entries):
        checks.append(trains(compressed, example_inputs))
        if plan.tier < 4 and checks[-1].passed:
            checks.append(masked_train(original, compressed, plan, example_inputs, groups, gone))
    return Proof(tuple(checks))


def outputs_of(result: Any) -> list[Tensor]:
    """Every tensor in a model's result: nested lists, dicts, dataclasses."""
    return list(_outputs(result))


def _outputs(result: Any) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(result):
        if isinstance(leaf, Tensor):
            yield leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            for item in fields(leaf):
                yield from _outputs(getattr(leaf, item.name))


def to_double(item: Any) -> Any:
    """Floating-point tensors of nested arguments in float64."""
    return pytree.tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, item)


def difference(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Largest difference of two lists of outputs relative to each one's spread; infinity when shapes differ."""
    worst = 0.0 if len(left) == len(right) else math.inf
    for a, b in zip(left, right, strict=False):
        if a.shape != b.shape:
            return math.inf
        if not a.numel():
            continue
        if not (a.is_floating_point() or a.is_complex()):
            worst = max(worst, 0.0 if torch.equal(a, b) else math.inf)
            continue
        a, b = a.double(), b.double()
        spread = float((a - a.mean()).abs().max()) or float(a.abs().max()) or 1.0
        gap = float((a - b).abs().max()) / spread
        worst = max(worst, gap if math.isfinite(gap) else math.inf)
    return worst


def _run(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    with torch.no_grad(), quiet(), mode_of(model, "eval"):
        torch.manual_seed(0)
        return outputs_of(model(*copy.deepcopy(tuple(inputs))))


def masked_equivalence(
    original: nn.Module,
    compressed: nn.Module,
    plan: ChannelsPlan,
    example_inputs: Sequence[Any],
    groups: Groups,
    gone: Ids,
) -> Check:
    """Proof 2, in float64 where the model's code allows it."""
    name = "masked equivalence"
    special = affected(groups, groups.traces[0], gone)
    with torch.random.fork_rng(devices=[]):
        for double in (True, False):
            convert = to_double if double else (lambda item: item)
            limit = DOUBLE_LIMIT if double else SINGLE_LIMIT
            inputs = convert(tuple(example_inputs))
            try:
                small = copy.deepcopy(compressed)
                found = _run(_double_(small) if double else small, inputs)
                del small
                dense = copy.deepcopy(original)
                dense = _double_(dense) if double else dense
                zero_(dense, plan)
                if special:
                    wanted = _masked_graph(dense, groups, gone, inputs, plan.tier == 4, double=double)
                    found = [item for item in found if isinstance(item, Tensor)]
                else:
                    wanted = _run(dense, inputs)
            except Exception as error:
                if double:
                    continue
                return Check(name, False, f"{type(error).__name__}: {error}"[:300], None, limit)
            if double and any(x.dtype in SINGLE for x in found):
                continue
            value = difference(wanted, found)
            if double and not value <= limit and _loses_precision(groups):
                continue
            how = "float64" if double else "float32"
            counted = f", {len(special)} operators on surviving channels" if special else ""
            return Check(name, value <= limit, f"{value:.1e} of the output's spread in {how}{counted}", value, limit)
    return Check(name, False, "the model does not run")


def _double_(model: nn.Module) -> nn.Module:
    model.double()
    for name, tensor, kind in list(named_tensors(model)):
        if kind == "attribute" and tensor.is_floating_point():
            prefix, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(prefix), attribute, tensor.double())
    return model


def _loses_precision(groups: Groups) -> bool:
    """The code itself asks for single precision, or less."""
    return any(
        "autocast" in str(node.target)
        or any(leaf in SINGLE for leaf in pytree.tree_leaves((list(node.args), dict(node.kwargs))))
        for node in groups.traces[0].program.graph.nodes
    )


def _masked_graph(
    dense: nn.Module,
    groups: Groups,
    gone: Ids,
    inputs: Sequence[Any],
    pinned: bool,
    trace: Trace | None = None,
    double: bool = True,
) -> list[Tensor]:
    tensors = {name: tensor.detach() for name, tensor, _ in named_tensors(dense)}
    flat = pytree.tree_leaves(tuple(inputs))
    with torch.no_grad():
        return evaluate_masked(groups, trace or groups.traces[0], gone, tensors, flat, pinned, double)


def permutation(original: nn.Module, example_inputs: Sequence[Any], groups: Groups) -> Check:
    """Proof 3, in float64, all groups at once."""
    name = "permutation"
    dense = _double_(copy.deepcopy(original))
    inputs = to_double(tuple(example_inputs))
    try:
        before = _run(dense, inputs)
        permute_(dense, groups)
        value = difference(before, _run(dense, inputs))
    except RuntimeError as error:
        return Check(name, False, f"{type(error).__name__}: {error}"[:300], None, DOUBLE_LIMIT)
    limit = SINGLE_LIMIT if _loses_precision(groups) and value > DOUBLE_LIMIT else DOUBLE_LIMIT
    return Check(name, value <= limit, f"outputs move by {value:.1e} when units are permuted", value, limit)


def permute_(model: nn.Module, groups: Groups, seed: int = 0) -> None:
    """Permute the units of every group in place, in all of its tensors."""
    generator = np.random.default_rng(seed)
    order: dict[tuple[str, int], Ids] = {}
    for group in groups.groups:
        moved = generator.permutation(group.units)
        for member in group.members:
            key = (member.tensor, member.dim)
            if key not in order:
                order[key] = np.arange(groups.atoms.by_name[member.tensor].shape[member.dim])
            order[key][member.index.reshape(-1)] = member.index[moved].reshape(-1)
    with torch.no_grad():
        for (name, dim), index in order.items():
            tensor = tensor_at(model, name)
            tensor.data.copy_(tensor.data.index_select(dim, torch.from_numpy(index)))


def trains(compressed: nn.Module, example_inputs: Sequence[Any]) -> Check:
    """Proof 4: train forward and backward of a copy run and reach finite values."""
    name = "train forward and backward"
    model = copy.deepcopy(compressed)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), quiet(), mode_of(model, "train"):
            torch.manual_seed(0)
            found = outputs_of(model(*copy.deepcopy(doubled(tuple(example_inputs)))))
            floats = [item for item in found if item.is_floating_point() and item.requires_grad]
            if floats:
                torch.stack([item.float().sum() for item in floats]).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}"[:300])
    return Check(name, True, f"{len(found)} outputs, {len(floats)} with gradients")


def masked_train(
    original: nn.Module,
    compressed: nn.Module,
    plan: ChannelsPlan,
    example_inputs: Sequence[Any],
    groups: Groups,
    gone: Ids,
) -> Check:
    """Proof 5; passed without a value where the two cannot be compared, and its detail says why."""
    name = "masked train forward"
    trace = next(trace for trace in groups.traces if trace.mode == "train")
    special = affected(groups, trace, gone)
    inputs = to_double(doubled(tuple(example_inputs)))
    nudged = pytree.tree_map(
        lambda x: x * (1 + NUDGE) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
    )
    try:
        dense = _double_(copy.deepcopy(original))
        zero_(dense, plan)

        def masked(given: Sequence[Any], seed: int) -> list[Tensor]:
            if not special:
                return _run_train(dense, given, seed)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return _masked_graph(copy.deepcopy(dense), groups, gone, given, False, trace)

        wanted = masked(inputs, 0)
        moved = difference(wanted, masked(nudged, 1))
    except Exception as error:
        return Check(name, True, f"not compared: the original does not run in float64 ({type(error).__name__})")
    if not moved <= UNSTABLE:
        return Check(name, True, "not compared: the forward is random or unstable")
    try:
        value = difference(wanted, _run_train(_double_(copy.deepcopy(compressed)), inputs, 0))
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}"[:300], None, TRAIN_LIMIT)
    return Check(name, value <= TRAIN_LIMIT, f"{value:.1e} of the output's spread in float64", value, TRAIN_LIMIT)


def _run_train(model: nn.Module, inputs: Sequence[Any], seed: int) -> list[Tensor]:
    """Outputs of a copy in train mode, without dropout."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if "drop" in (kind := type(module).__name__.lower()) or kind == "stochasticdepth":
            for attribute in ("p", "drop_prob"):
                if isinstance(getattr(module, attribute, None), float):
                    setattr(module, attribute, 0.0)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet(), mode_of(model, "train"):
        torch.manual_seed(seed)
        return outputs_of(model(*copy.deepcopy(tuple(inputs))))


class _SameIds(Labels):
    """Labels that compare instead of uniting; ids made later (padding, factories) are free."""

    def __init__(self, dense: Labels) -> None:
        super().__init__()
        self._parent = dense.copy()._parent
        self._limit = self.size
        self.problems: list[str] = []
        self._operator = ""

    def unite(self, left: Ids, right: Ids) -> None:
        """Note classes that differ."""
        if left.shape != right.shape:
            self.problems.append(f"{left.size} channels meet {right.size}")
            return
        a, b = self.find(left), self.find(right)
        free = (a >= self._limit) | (b >= self._limit)
        if bool(((a != b) & ~free & ((a >= RESERVED) | (b >= RESERVED))).any()):
            self.problems.append("channels meet others than in the original")
        if free.any():
            super().unite(left[free], right[free])

    def freeze(self, ids: Ids, reason: Reason) -> None:
        """Note channels that were free to go in the original."""
        roots = self.find(ids)
        if bool(((roots >= RESERVED) & (roots < self._limit)).any()):
            self.problems.append(f"channels end at {reason}")


def identity(compressed: nn.Module, plan: ChannelsPlan, groups: Groups) -> Check:
    """Proof 1, over every entry that was analysed."""
    name = "channel identity"
    labels = _SameIds(groups.labels)
    scope = Scope(labels, groups.atoms.first_buffer, lenient=True)
    values = kept_values(groups, plan)
    for entry in groups.entries:
        try:
            program = read_graph(compressed, entry)
        except CannotTrace as error:
            return Check(name, False, str(error))
        propagate(program, entry.mode, values, scope)
        if labels.problems:
            return Check(name, False, f"in the {entry.mode} forward {labels.problems[0]}")
    listed: Mapping[str, Any] = values
    return Check(name, True, f"{len(listed)} tensors meet as in the original, {len(groups.entries)} forwards")
