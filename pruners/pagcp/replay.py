"""A cache of what masked layers do not change: exact, because those calls see exactly the same inputs.

Leaf modules are called in a fixed order. While a candidate group is tried, every call before the first module that
holds one of the group's tensors returns what it returned before, and so does every later call whose inputs none of
them has reached: the heads of other tasks, side branches. After a commit the outputs from the first changed module on
are forgotten and filled in again by the next evaluation that passes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from profilers.complexity import measure
from pruners.channels.atoms import plain_tensors, tensor_at
from pruners.pagcp.untouched import Untouched


class Unsteady(Exception):
    """The modules are called in another order than in the first run."""


class Replay:
    """Runs a model batch by batch with the calls that a change does not reach answered from memory.

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

        def note(module: nn.Module, given: Any, run: Callable[[], Any]) -> Any:
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

    def forget(self, changed: Iterable[str] | None = None) -> None:
        """Drop what was stored of the calls from the first on that has one of these tensors; None: of all calls."""
        names = set(() if changed is None else changed)
        start = 0 if changed is None else self.first_call(names) if names else len(self.order)
        for store in self._stored:
            for place in [place for place in store if place >= start]:
                self._left += _bytes(store.pop(place))

    @contextmanager
    def running(self, number: int, batch: Any, changed: Iterable[str], share: float) -> Iterator[None]:
        """Within the context calls that the change does not reach are answered from memory, or stored in it.

        Args:
            number: which batch runs.
            batch: its samples, which are as they were.
            changed: names of the tensors whose values differ from those after the last commit.
            share: this batch's share of all samples, for the count of work.
        """
        if not self.enabled:
            yield
            self.forwards += share
            return
        names = set(changed)
        start = self.first_call(names) if names else len(self.order)
        owners = {name.rpartition(".")[0] for name in names}
        follow = Untouched([tensor_at(self._model, name) for name in names], self._known(batch))
        position = 0
        saved = 0.0
        store = self._stored[number]

        def call(module: nn.Module, given: Any, run: Callable[[], Any]) -> Any:
            nonlocal position, saved
            place, position = position, position + 1
            name = self._names[id(module)]
            if place >= len(self.order) or self.order[place] != name:
                self.enabled = False
                raise Unsteady
            if getattr(module, "inplace", False):
                return run()  # what changes its own input must really do so
            same = place < start or (name not in owners and follow.holds(given))
            if same and place in store:
                saved += self._cost[place]
                found = store[place].clone()  # callers may write into it
            else:
                found = run()
                if same and isinstance(found, Tensor) and _bytes(found) <= self._left:
                    store[place] = found.detach().clone()
                    self._left -= _bytes(found)
            if same:
                follow.add(found)
            return found

        with self._patched(call), follow:
            yield
        self.forwards += share * (1 - saved)

    def _known(self, batch: Any) -> Iterator[Tensor]:
        """The batch's tensors and all of the model's."""
        yield from (leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))
        yield from self._model.parameters()
        yield from self._model.buffers()
        yield from (tensor for _, tensor in plain_tensors(self._model))

    @contextmanager
    def _patched(self, call: Callable[[nn.Module, Any, Callable[[], Any]], Any]) -> Iterator[None]:
        """Route the forward of every leaf module through `call` while the context lasts."""
        leaves = [module for module in self._model.modules() if id(module) in self._names]
        own = [module.__dict__.get("forward") for module in leaves]
        try:
            for module in leaves:
                inner = module.forward

                def forward(*args: Any, _module: Any = module, _inner: Any = inner, **kwargs: Any) -> Any:
                    return call(_module, (args, kwargs), lambda: _inner(*args, **kwargs))

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
