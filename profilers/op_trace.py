"""A trace of one forward pass, operator by operator: MACs and memory traffic by module and weight.

`OpTrace` is a dispatch mode: it sees every ATen operator with its tensors (fake, meta or real) and the module whose
forward is running. Weights are recognised through views, so a transposed or split weight keeps its name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from profilers.op_costs import COUNTED, FREE, NOT_ARITHMETIC, base_name

_KEEPS_WEIGHT = frozenset({"aten::_to_copy", "aten::clone", "aten::_unsafe_view", "aten::contiguous", "aten::detach"})


@dataclass(slots=True)
class OpTotals:
    """Sums over the calls of one operator by one module on one weight."""

    calls: int = 0
    macs: int = 0
    outputs: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


Key = tuple[str, str, str | None]
"""(module, operator, weight)"""


class OpTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts while it is active; use together with `following` to know the running module.

    Args:
        weights: tensors whose use is to be recognised, by name.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.totals: defaultdict[Key, OpTotals] = defaultdict(OpTotals)
        self.uncounted: Counter[str] = Counter()
        self.called: set[str] = set()
        self._modules: list[str] = [""]
        self._weights: Any = WeakTensorKeyDictionary()
        for name, tensor in reversed(weights.items()):  # a tied tensor keeps its first name
            self._weights[tensor] = name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and add up its cost; composite operators are taken apart first."""
        kwargs = kwargs or {}
        name = func.name().split(".")[0] if hasattr(func, "name") else str(func)
        if name.startswith("prim::") or not hasattr(func, "decompose"):
            return func(*args, **kwargs)
        if name not in COUNTED and base_name(name) not in NOT_ARITHMETIC:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self._record(name, func, args, tree_leaves((args, kwargs)), result)
        return result

    def enter(self, name: str) -> None:
        """A module's forward begins."""
        self.called.add(name)
        self._modules.append(name)

    def leave(self) -> None:
        """A module's forward has ended."""
        self._modules.pop()

    def _record(self, name: str, func: Any, args: Sequence[Any], leaves: list[Any], result: Any) -> None:
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if func.is_view or name in _KEEPS_WEIGHT:
            self._pass_on(inputs, outputs)
        if func.is_view or name in FREE:
            return
        counter = COUNTED.get(name)
        weight = next((self._weights[t] for t in inputs if t.dim() > 1 and t in self._weights), None)
        totals = self.totals[self._modules[-1], name, weight if counter else None]
        totals.calls += 1
        totals.bytes_read += sum(map(_bytes, inputs))
        totals.bytes_written += sum(map(_bytes, outputs))
        if counter is not None:
            totals.macs += int(counter(args, outputs))
            totals.outputs += outputs[0].numel()
        elif base_name(name) not in NOT_ARITHMETIC:
            self.uncounted[name] += 1

    def _pass_on(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        if inputs and inputs[0] in self._weights:
            for output in outputs:
                self._weights[output] = self._weights[inputs[0]]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@contextmanager
def following(trace: OpTrace, model: nn.Module) -> Iterator[None]:
    """Tell `trace` which module of `model` is running, through global hooks: nothing is put on the model itself."""
    names = {module: name for name, module in reversed(list(model.named_modules()))}

    def before(module: nn.Module, inputs: Any) -> None:
        if module in names:
            trace.enter(names[module])

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if module in names:
            trace.leave()

    handles = [
        module_hooks.register_module_forward_pre_hook(before),
        module_hooks.register_module_forward_hook(after, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Attention as plain matrix products: no fused kernel hides them; the settings come back afterwards."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
