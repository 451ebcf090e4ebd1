"""Keeping zeros zero while a pruned network trains.

The zeros of the weights are the mask: `Masks` takes it from them once and, after every optimiser step, sets the masked
weights and all optimiser state of the same shape (momentum, Adam's moments) back to +0.0. Bits are multiplied by the
integers 0 and 1, which can make neither -0.0 nor NaN (inf * 0), over whole lists of tensors at once. Nothing is hooked
into the user's modules or hung on them; a tied parameter is one parameter and has one mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruners.candidates import Candidate, Candidates
from pruners.errors import MaskMismatch
from pruners.keys import KINDS
from pruners.magnitude import apply_, plan
from pruners.magnitude_options import MagnitudeOptions
from pruners.magnitude_plan import MagnitudePlan

Saved = dict[str, dict[str, Any]]


class Masks:
    """The zero pattern of some parameters of a module during training.

    Args:
        model: the module whose parameters are trained (without a DDP wrapper; its `.module`).
        names: tensors to mask, `MagnitudePlan.names`; other names of the same parameter count once.

    Raises:
        MaskMismatch: the module has no such parameter.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._weights = _pick(model, names)
        # 0 where the weight is zero, 1 elsewhere, as integers of the weight's own width
        self._ones = {name: _ones(weight) for name, weight in self._weights.items()}
        self._converted: dict[tuple[str, torch.dtype, torch.device, tuple[int, ...]], Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the masked parameters."""
        return tuple(self._weights)

    def zeros(self) -> dict[str, int]:
        """Return the number of masked weights of each parameter."""
        return {name: mask.numel() - int(torch.count_nonzero(mask)) for name, mask in self._ones.items()}

    def constrain_(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Zero the masked weights, and with an optimiser its state there; call after every optimiser step.

        All per-parameter state with the shape of its parameter is masked: momentum buffers, Adam's moments.
        """
        pairs: list[tuple[Tensor, Tensor]] = []
        for name, weight in self._weights.items():
            pairs.append((weight, self._for(name, weight)))
            if optimizer is not None:
                pairs += [(value, self._for(name, value)) for value in _states(optimizer, weight)]
        _multiply_bits_(pairs)

    def mask_gradients_(self) -> None:
        """Zero the gradients of the masked weights, so that clipping by norm sees only what is trained."""
        grads = ((name, weight.grad) for name, weight in self._weights.items())
        _multiply_bits_([(grad, self._for(name, grad)) for name, grad in grads if grad is not None and _dense(grad)])

    def apply_to_(self, tensors: Mapping[str, Tensor]) -> None:
        """Zero the masked places of copies of the weights (an average of them, a state dict); other names are left.

        Raises:
            MaskMismatch: a tensor has another shape.
        """
        chosen = {name: tensors[name] for name in self._weights if name in tensors}
        for name, tensor in chosen.items():
            if tensor.shape != self._ones[name].shape:
                raise MaskMismatch(name, f"has shape {tuple(tensor.shape)}, not {tuple(self._ones[name].shape)}")
        _multiply_bits_([(tensor, self._for(name, tensor)) for name, tensor in chosen.items()])

    def reselect_(self, options: MagnitudeOptions, optimizer: torch.optim.Optimizer | None = None) -> MagnitudePlan:
        """Prune on to the sparsity of `options` by the weights as they are now; masked weights stay zero.

        Args:
            options: `MagnitudePlan.options_at(schedule.sparsity_at(step))`; its patterns are not used, the masked
                tensors are the ones ranked.
            optimizer: its state is masked as in `constrain_`.

        Returns:
            The plan that was applied.

        Raises:
            what `pruners.magnitude.plan` raises.
        """
        self.constrain_()
        unpatterned = MagnitudeOptions(options.sparsity, options.scope, options.score, options.floor)
        ranked = Candidates(tuple(Candidate(name, weight) for name, weight in self._weights.items()), ())
        decided = plan(ranked, unpatterned)
        apply_(self._weights, decided)
        self._ones = {name: _ones(weight) for name, weight in self._weights.items()}
        self._converted.clear()
        self.constrain_(optimizer)
        return decided

    def state_dict(self) -> Saved:
        """Return the masks with eight places per byte: name -> {"shape", "bits"}; loads with `weights_only`."""
        return {name: {"shape": list(mask.shape), "bits": _pack(mask)} for name, mask in self._ones.items()}

    def load_state_dict(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over saved masks; nothing changes when they do not fit.

        Raises:
            MaskMismatch: names or shapes differ.
        """
        for name in {**saved, **self._weights}:
            if name not in saved or name not in self._weights:
                raise MaskMismatch(name, "is not saved" if name not in saved else "is saved but not in the model")
            if list(saved[name]["shape"]) != list(self._weights[name].shape):
                raise MaskMismatch(name, f"has shape {list(self._weights[name].shape)}, not {saved[name]['shape']}")
        self._ones = {name: _unpack(saved[name]["bits"], weight) for name, weight in self._weights.items()}
        self._converted.clear()

    def _for(self, name: str, tensor: Tensor) -> Tensor:
        """Return the mask of a parameter for a tensor that it is to multiply: in its integer type, device and strides.

        `torch._foreach_mul_` is fast only where the strides agree.
        """
        mask, width = self._ones[name], KINDS[tensor.dtype].torch_int
        if mask.dtype is width and mask.device == tensor.device and mask.stride() == tensor.stride():
            return mask
        key = (name, width, tensor.device, tensor.stride())
        if key not in self._converted:
            self._converted[key] = torch.empty_like(tensor, dtype=width, requires_grad=False).copy_(mask)
        return self._converted[key]


def _pick(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the named parameters, each once."""
    known = dict(model.named_parameters(remove_duplicate=False))
    picked: dict[str, nn.Parameter] = {}
    for name in names:
        if name not in known:
            raise MaskMismatch(name, "is not a parameter of the model")
        if all(known[name] is not other for other in picked.values()):
            picked[name] = known[name]
    return picked


def _ones(weight: Tensor) -> Tensor:
    return (weight.detach() != 0).to(KINDS[weight.dtype].torch_int)


def _dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.dtype in KINDS


def _states(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> Iterator[Tensor]:
    """Yield the optimiser's state tensors that have one number per weight."""
    for value in optimizer.state.get(weight, {}).values():
        if isinstance(value, Tensor) and value.shape == weight.shape and _dense(value):
            yield value


@torch.no_grad()
def _multiply_bits_(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Multiply the bit patterns of tensors by integer masks in place, one call per element type and device."""
    groups: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
    for tensor, mask in pairs:
        bits = tensor.detach().view(KINDS[tensor.dtype].torch_int)
        targets, masks = groups.setdefault((bits.dtype, bits.device), ([], []))
        targets.append(bits)
        masks.append(mask)
    for targets, masks in groups.values():
        torch._foreach_mul_(targets, masks)


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.to("cpu", torch.bool).reshape(-1).numpy()))


def _unpack(bits: Tensor, weight: Tensor) -> Tensor:
    """Return packed bits as a mask laid out in memory like the weight."""
    flat = np.unpackbits(bits.cpu().numpy(), count=weight.numel())
    ones = torch.zeros_like(weight, dtype=KINDS[weight.dtype].torch_int)
    ones.copy_(torch.from_numpy(flat).view(weight.shape))
    return ones
