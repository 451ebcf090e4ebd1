"""A cache of what comes before the first masked layer: exact, because those layers see exactly the same inputs.

Leaf modules are called in a fixed order. While a candidate group is tried, every call before the first module that
holds one of the group's tensors returns what it returned before; from that module on everything is computed. After a
commit the outputs from there on are forgotten and filled in again by the next evaluation that passes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from profilers.complexity import measure


class Unsteady(Exception):
    """The modules are called in another order than in the first run."""


class Replay:
    """Runs a model batch by batch with the calls before a given point answered from memory.

    Attributes:
        order: names of leaf modules in the order in which they are called.
        enabled: False when the order of calls changes between batches; then everything is computed.
        forwards: work done so far in full forward passes over all batches (by MACs of the calls that were computed).
    """

    def __init__(self, model: nn.Module, batches: int, limit_bytes: int) -> None:
        self._model = model
        self._names = {id(module): name for name, module in model.named_modules() if not list(module.children())}
        self._stored: list[dict[int, Any]] = [{} for _ in range(batches)]
        self._left = limit_bytes
        self.enabled = limit_bytes > 0
        self.order: list[str] = []
        self._cost: list[float] = []
        self.forwards = 0.0

    def learn(self, example_inputs: tuple[Any, ...]) -> None:
        """Find the order of calls and each call's share of the MACs from one run of the example."""
        called: list[str] = []

        def note(module: nn.Module, run: Callable[[], Any]) -> Any:
            called.append(self._names[id(module)])
            return run()

        with self._patched(note), torch.no_grad():
            self._model(*example_inputs)
        self.order = called
        by_module = measure(self._model, example_inputs).macs_by_module()
        total = sum(by_module.values()) or 1
        self._cost = [by_module.get(name, 0) / total / called.count(name) for name in called]

    def first_call(self, tensors: Iterable[str]) -> int:
        """Index of the first call of a module that owns one of these tensors; 0 when that is unknown."""
        owners = {name.rpartition(".")[0] for name in tensors}
        if not owners <= set(self.order):
            return 0  # a tensor used by a container's own code: nothing is known about when
        return next(place for place, name in enumerate(self.order) if name in owners)

    def forget(self, start: int) -> None:
        """Drop what was stored of the calls from `start` on."""
        for store in self._stored:
            for place in [place for place in store if place >= start]:
                self._left += _bytes(store.pop(place))

    @contextmanager
    def running(self, batch: int, start: int, share: float) -> Iterator[None]:
        """Within the context the model's forward takes calls before `start` from memory, or stores them.

        Args:
            batch: which batch runs.
            share: this batch's share of all samples, for the count of work.
        """
        position = 0
        saved = 0.0
        store = self._stored[batch]

        def call(module: nn.Module, run: Callable[[], Any]) -> Any:
            nonlocal position, saved
            place, position = position, position + 1
            if not self.enabled or getattr(module, "inplace", False):
                return run()  # what changes its own input must really do so
            if place >= len(self.order) or self.order[place] != self._names[id(module)]:
                self.enabled = False
                raise Unsteady
            if place < start and place in store:
                saved += self._cost[place]
                return store[place].clone()  # callers may write into it
            found = run()
            if place < start and isinstance(found, Tensor):
                size = _bytes(found)
                if size <= self._left:
                    store[place] = found.detach().clone()
                    self._left -= size
            return found

        with self._patched(call):
            yield
        self.forwards += share * (1 - saved)

    @contextmanager
    def _patched(self, call: Callable[[nn.Module, Callable[[], Any]], Any]) -> Iterator[None]:
        """Route the forward of every leaf module through `call` while the context lasts."""
        leaves = [module for module in self._model.modules() if id(module) in self._names]
        own = [module.__dict__.get("forward") for module in leaves]
        try:
            for module in leaves:
                inner = module.forward

                def forward(*args: Any, _module: Any = module, _inner: Any = inner, **kwargs: Any) -> Any:
                    return call(_module, lambda: _inner(*args, **kwargs))

                module.forward = forward
            yield
        finally:
            for module, before in zip(leaves, own, strict=True):
                if before is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = before


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
