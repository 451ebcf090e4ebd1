"""How much each channel matters: per task by Fisher information, or by the size of its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from pruners.channels import Group, Groups, Member
from pruners.channels.atoms import tensor_at
from pruners.pagcp.tasks import TaskData, mean

Scores = list[Tensor]
"""One (units,) float64 tensor per group."""


def l1_scores(model: nn.Module, groups: Groups) -> Scores:
    """Sum over a group's producers of the mean |w| of each channel's filter, over (in, kh, kw).

    For one producer this is the order of the filters' L1 norms; with several the mean keeps fan-in from weighing.
    """
    found = []
    for group in groups.groups:
        total = torch.zeros(group.units, dtype=torch.float64)
        for member in group.members:
            weight = tensor_at(model, member.tensor)
            if weight.dim() >= 2 and member.dim == _producer_dim(model, member):
                rows = weight.detach().double().cpu().abs().movedim(member.dim, 0).flatten(1).mean(1)
                total += rows[torch.from_numpy(member.index)].sum(1)
        found.append(total)
    return found


def fisher_scores(model: nn.Module, groups: Groups, data: TaskData) -> dict[str, Scores]:
    """F_t(channel) = sum over samples of (dL_t/dgate)^2 over the mean loss (plus floor), for every task at once.

    Where a task has targets for some samples only, its sum is scaled up to all of them: else the task that has the
    fewest targets would count least.

    The gate is a factor 1 on the channel wherever another layer reads it, so dL/dgate = sum x * dL/dx over those
    inputs, dL/dx through that reader alone (what flows past it on a skip connection is counted where it is read): one
    backward per task gives it for all channels and samples. Readers that are no plain convolution or
    linear layer give the batch's gradient instead, sum w * dL/dw over the slices that read the channel.
    """
    working = copy.deepcopy(model).eval()
    for parameter in working.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    readers = [_Readers(working, group) for group in groups.groups]
    totals: dict[str, Scores] = {}
    losses: dict[str, list[Tensor]] = {}
    for batch in data.batches:
        with ExitStack() as stack:
            inputs = _recorded(working, {name for each in readers for name in each.layers}, stack)
            with torch.enable_grad():
                outputs = data.forward(working, batch)
                found = (data.probes or data.losses)(outputs, batch)
            for task, values in data.losses(outputs, batch).items() if data.probes else found.items():
                losses.setdefault(task, []).append(values.detach().double().cpu())
            for task, values in found.items():
                sums = totals.setdefault(task, [torch.zeros(g.units, dtype=torch.float64) for g in groups.groups])
                if values.requires_grad:
                    _add(sums, readers, inputs, values, working)
    for task, sums in totals.items():
        known = torch.cat(losses[task])
        share = float((~torch.isnan(known)).double().mean())
        scale = share * (mean(known) + data.floors.get(task, 0.0))
        totals[task] = [values / scale if scale > 0 else values for values in sums]
    return totals


def _add(
    sums: Scores, readers: list[_Readers], inputs: dict[str, list[Tensor]], values: Tensor, working: nn.Module
) -> None:
    """Add one batch's squared gate gradients of one task."""
    known = torch.where(torch.isnan(values), torch.zeros_like(values), values).sum()
    recorded = [x for calls in inputs.values() for x in calls]
    weights = [tensor_at(working, name) for each in readers for name, _ in each.slices]
    wanted = [x for x in [*recorded, *weights] if x.requires_grad]
    found = torch.autograd.grad(known, wanted, retain_graph=True, allow_unused=True) if wanted else ()
    gradients: dict[int, Tensor | None] = {id(x): gradient for x, gradient in zip(wanted, found, strict=True)}
    for total, each in zip(sums, readers, strict=True):
        total += each.squared(inputs, gradients, len(values), working)


def _recorded(model: nn.Module, names: set[str], stack: ExitStack) -> dict[str, list[Tensor]]:
    """Inputs of these layers, filled during the next forward."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def alias(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            own = args[0].view_as(args[0])  # its gradient is what goes through this layer alone
            inputs[name].append(own)
            return (own, *args[1:])

        return alias

    for name in names:
        handle = model.get_submodule(name).register_forward_pre_hook(keep(name))
        stack.callback(handle.remove)
    return inputs


class _Readers:
    """Where the channels of one group are read: layers with a recorded input, and slices of other weights."""

    def __init__(self, model: nn.Module, group: Group) -> None:
        self.units = group.units
        self.layers: dict[str, Tensor] = {}
        self.slices: list[tuple[str, Member]] = []
        producers = []
        for member in group.members:
            if tensor_at(model, member.tensor).dim() < 2:
                continue
            name, _, own = member.tensor.rpartition(".")
            module = model.get_submodule(name)
            if own == "weight" and _reads_at(module) == member.dim:
                self.layers[name] = torch.from_numpy(member.index)
            elif member.dim != _producer_dim(model, member):
                self.slices.append((member.tensor, member))
            elif not _is_depthwise(module):
                producers.append((member.tensor, member))
        if not self.layers and not self.slices:
            self.slices = producers  # channels that meet each other without a weight, as queries and keys

    def squared(
        self, inputs: dict[str, list[Tensor]], gradients: dict[int, Tensor | None], batch: int, model: nn.Module
    ) -> Tensor:
        """(units,) sum over samples of the squared derivative by the gate."""
        device = next(model.parameters()).device
        gate = torch.zeros(batch, self.units, dtype=torch.float64, device=device)
        for name, index in self.layers.items():
            for x in inputs[name]:
                gradient = gradients.get(id(x))
                if gradient is not None:
                    by_channel = _by_channel(x.detach() * gradient, model.get_submodule(name), batch)
                    gate += by_channel.double()[:, index.to(device)].sum(2)
        total = gate.square().sum(0).cpu()
        for name, member in self.slices:
            weight = tensor_at(model, name)
            gradient = gradients.get(id(weight))
            if gradient is not None:
                rows = (weight.detach() * gradient).double().movedim(member.dim, 0).flatten(1).sum(1).cpu()
                total = total + rows[torch.from_numpy(member.index)].sum(1).square()
        return total


def _by_channel(product: Tensor, module: nn.Module, batch: int) -> Tensor:
    """(batch, channels) sums of x * dL/dx of one layer's input; images folded into the batch are added up."""
    if isinstance(module, nn.Linear):
        sums = product.reshape(product.shape[0], -1, product.shape[-1]).sum(1)
    else:
        sums = product.flatten(2).sum(2)
    if len(sums) != batch and len(sums) % batch == 0:
        return sums.reshape(batch, -1, sums.shape[1]).sum(1)
    if len(sums) != batch:  # no telling which sample a row belongs to: the batch's gradient as one
        return torch.cat([sums.sum(0, keepdim=True), sums.new_zeros(batch - 1, sums.shape[1])])
    return sums


def _reads_at(module: nn.Module) -> int | None:
    """The weight's dim that is the layer's input channels; None where it is no plain layer."""
    if isinstance(module, nn.Linear):
        return 1
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1:
        return 0 if module.transposed else 1
    return None


def _producer_dim(model: nn.Module, member: Member) -> int:
    """The weight's dim that is the layer's output channels."""
    module = model.get_submodule(member.tensor.rpartition(".")[0])
    return 1 if isinstance(module, nn.modules.conv._ConvNd) and module.transposed else 0


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
