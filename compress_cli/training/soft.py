"""ST-3: train dense weights through a soft threshold that rises until the network is sparse enough.

Vanderschueren & De Vleeschouwer, "Are Straight-Through gradients and Soft-Thresholding all you need for Sparse
Training?", WACV 2023, arXiv 2212.01076. With dense weights v, the threshold t of global magnitude pruning at the
present sparsity and m = [|v| > t], the network computes with q = beta_o * (v - sign(v) * t) * m, where per output
channel o beta_o = 1.01 / (rho_o + 0.01), rho_o = (mean(|v| * m) + 1e-6) / (mean |v| + 1e-6): the mass that the
threshold took is given back. The gradient of q is used for all of v as it is, masked weights included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress_cli.training.sparse import Dense
from compress_cli.translate import pruning_errors
from pruners import magnitude
from pruners.candidates import Candidate, Candidates

if TYPE_CHECKING:
    from pruners.magnitude_plan import MagnitudePlan
    from pruners.schedules import Schedule


class SoftThreshold(Dense):
    """ST-3 over the tensors of a magnitude plan."""

    kind = "ST-3"

    def __init__(self, module: nn.Module, plan: MagnitudePlan, schedule: Schedule) -> None:
        named = dict(module.named_parameters(remove_duplicate=False))
        self._weights = {name: named[name] for name in plan.names}
        self._transposed = _transposed_weights(module)
        self._plan = plan
        self._schedule = schedule
        self._raw: list[Tensor] | None = None
        self._thresholds: dict[str, float] = dict.fromkeys(self._weights, 0.0)
        self._made = 0

    def before_forward_(self, step: int) -> None:
        """v -> q; thresholds are found anew when the schedule says so."""
        self._made = step
        if self._schedule.is_due(step):
            self._find_thresholds(step)
        self._enter()

    def after_backward_(self) -> None:
        """q -> v; the gradient of q stays where it is, as the gradient of v."""
        self._leave()

    def after_step_(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Nothing holds for v."""
        self._made = step + 1

    @contextmanager
    def deployed(self) -> Iterator[None]:
        """q inside."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def finish_(self) -> None:
        """v := q at the final sparsity, counted exactly on the weights as they are now.

        A weight that the plan keeps although its magnitude is that of the threshold (a tie) would become a zero more
        than asked: it keeps the smallest magnitude that numbers near the threshold can differ by.
        """
        found = self._find_thresholds(self._schedule.end)
        kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
        if found is not None:
            magnitude.apply_(kept, found)
        self._enter()
        self._raw = None
        for name, weight in self._weights.items():
            _keep_(weight.detach(), kept[name], self._thresholds[name])

    def state_dict(self) -> dict[str, Any]:
        """The thresholds; v is in the weights."""
        return {"thresholds": dict(self._thresholds)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """See `Dense`."""
        self._thresholds = dict(saved["thresholds"])

    def describe(self) -> dict[str, Any]:
        """See `Dense`."""
        return {"mode": self.kind, **self._schedule.to_dict()}

    def _find_thresholds(self, step: int) -> MagnitudePlan | None:
        sparsity = self._schedule.sparsity_at(step)
        if sparsity == 0:
            return None
        wanted = self._plan.sparsity if step >= self._schedule.end else repr(sparsity)
        ranked = Candidates(tuple(Candidate(name, weight) for name, weight in self._weights.items()), ())
        with pruning_errors():
            found = magnitude.plan(ranked, self._plan.options_at(wanted))
        # a tensor without a cut (all at its floor) has no magnitude to take off
        self._thresholds = {cut.name: float(cut.threshold) if cut.removed else 0.0 for cut in found.cuts}
        return found

    @torch.no_grad()
    def _enter(self) -> None:
        if self._raw is not None:
            return
        weights = list(self._weights.values())
        self._raw = [weight.detach().clone() for weight in weights]
        cut = [name for name in self._weights if self._thresholds[name] > 0]
        found = soft_thresholds(
            [self._weights[name].detach() for name in cut],
            [self._thresholds[name] for name in cut],
            [1 if name in self._transposed else 0 for name in cut],
        )
        if cut:
            torch._foreach_copy_([self._weights[name] for name in cut], found)

    @torch.no_grad()
    def _leave(self) -> None:
        if self._raw is None:
            return
        torch._foreach_copy_(list(self._weights.values()), self._raw)
        self._raw = None


def soft_threshold(weight: Tensor, threshold: float, channel_axis: int = 0) -> Tensor:
    """q of a weight v: +0.0 where |v| <= threshold, else shrunk by it and scaled per output channel.

    Example: v = [3, 1] in one channel with threshold 1: m = [1, 0], rho = 1.5 / 2, beta = 1.01 / 0.76,
    q = [2 * 1.3289, 0].
    """
    return weight.clone() if threshold <= 0 else soft_thresholds([weight], [threshold], [channel_axis])[0]


def soft_thresholds(weights: list[Tensor], thresholds: list[float], axes: list[int]) -> list[Tensor]:
    """`soft_threshold` of several weights at positive thresholds; over lists, as a GPU waits for small kernels."""
    if not weights:
        return []
    sizes = torch._foreach_abs(weights)
    shrunk = torch._foreach_sub(sizes, thresholds)
    torch._foreach_clamp_min_(shrunk, 0.0)  # |v| - t where that is positive: there and only there |v| > t
    left = torch._foreach_mul(sizes, torch._foreach_sign(shrunk))
    kept, total = ([_by_channel(v, axis) for v, axis in zip(part, axes, strict=True)] for part in (left, sizes))
    torch._foreach_add_(kept, 1e-6)
    torch._foreach_add_(total, 1e-6)
    torch._foreach_div_(kept, total)  # rho
    torch._foreach_add_(kept, 0.01)
    scales = torch._foreach_reciprocal(kept)
    torch._foreach_mul_(scales, 1.01)  # beta
    signed = torch._foreach_mul(shrunk, torch._foreach_sign(weights))
    found = [value * scale for value, scale in zip(signed, scales, strict=True)]
    torch._foreach_add_(found, 0.0)  # -0.0 becomes +0.0
    return found


def _keep_(weight: Tensor, kept: Tensor, threshold: float) -> None:
    """Give places that are zero in `weight` but not in `kept` the step between floats at the threshold."""
    lost = (kept != 0) & (weight == 0)
    if threshold <= 0 or not bool(lost.any()):
        return
    edge = torch.tensor(threshold, dtype=weight.dtype, device=weight.device)
    weight[lost] = kept[lost].sign() * (edge - torch.nextafter(edge, torch.zeros_like(edge)))


def _by_channel(value: Tensor, channel_axis: int) -> Tensor:
    others = [axis for axis in range(value.dim()) if axis != channel_axis]
    return value.mean(others, keepdim=True)


def _transposed_weights(module: nn.Module) -> set[str]:
    """Names of weights whose second dimension is the output channels."""
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return {f"{name}.weight".lstrip(".") for name, layer in module.named_modules() if isinstance(layer, kinds)}
