"""One operator call of a traced graph, with its arguments by schema name and its outputs' shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pruners.channels.labels import Ids
from pruners.channels.planes import Scope, Value, spread

Result = Any
"""A `Value`, a tuple or list of them, or None."""


@dataclass(frozen=True, slots=True)
class Call:
    """An operator, its arguments (tensors as `Value`) and the shapes of what it returns.

    Attributes:
        key: schema name such as `aten::conv2d`.
        args: by schema argument name, defaults filled in.
        shapes: of each output tensor, in order.
        single: the operator returns one tensor, not a tuple or list.
    """

    node: fx.Node
    key: str
    args: dict[str, Any]
    positional: tuple[Any, ...]
    keywords: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    single: bool

    def value(self, *names: str) -> Value:
        """The tensor argument under the first of these names that exists."""
        for name in names:
            if name in self.args:
                found = self.args[name]
                if isinstance(found, Value):
                    return found
        raise LookupError(f"{self.key} has no tensor argument {names}")

    def optional(self, name: str) -> Value | None:
        """A tensor argument that may be absent."""
        found = self.args.get(name)
        return found if isinstance(found, Value) else None

    def values(self) -> list[Value]:
        """All tensor arguments, lists flattened, in order."""
        found: list[Value] = []
        for argument in (*self.positional, *self.keywords.values()):
            for item in argument if isinstance(argument, (list, tuple)) else (argument,):
                if isinstance(item, Value):
                    found.append(item)
        return found

    def result(self, planes: Sequence[dict[int, Ids]]) -> Result:
        """Pack planes of the outputs as the operator returns them."""
        values = [Value(shape, found) for shape, found in zip(self.shapes, planes, strict=True)]
        return values[0] if self.single else tuple(values)

    def run(self, replace: Callable[[Value], Tensor]) -> list[Tensor]:
        """Run the real operator with every tensor argument replaced; returns its outputs as a flat list."""

        def swap(item: Any) -> Any:
            if isinstance(item, Value):
                return replace(item)
            if isinstance(item, (list, tuple)):
                return [swap(each) for each in item]
            return item

        target: Any = self.node.target
        found = target(*[swap(item) for item in self.positional], **{k: swap(v) for k, v in self.keywords.items()})
        return [found] if isinstance(found, Tensor) else list(found)


Rule = Callable[[Scope, Call], Result]


def dims_of(dims: Any, ndim: int) -> list[int]:
    """Normalise a dim argument (None or empty: all dims) to non-negative ints."""
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(ndim))
    listed = dims if isinstance(dims, (list, tuple)) else [dims]
    return [int(dim) % ndim for dim in listed] if ndim else []


def keep_planes(value: Value, dims: Sequence[int]) -> dict[int, Ids]:
    """The planes of a value on these dims."""
    return {dim: ids for dim, ids in value.planes.items() if dim in dims}


def freeze_dims(scope: Scope, value: Value, dims: Sequence[int], text: str) -> None:
    """Freeze the planes of a value on these dims."""
    for dim in dims:
        scope.freeze(value.planes.get(dim), text)


def run_on_planes(scope: Scope, call: Call, value: Value, planes: dict[int, Ids]) -> list[dict[int, Ids]]:
    """Run the operator on each plane of its one tensor argument and tie the outcome, output by output."""
    found: list[list[dict[int, Ids]]] = [[] for _ in call.shapes]
    for dim, ids in planes.items():
        outputs = call.run(lambda item, dim=dim: spread(item.shape, dim))  # type: ignore[misc]
        for place, output in zip(found, outputs, strict=True):
            place.append(scope.tie(output, ids))
    return [scope.merge(place) for place in found]


def zeros_index(shape: Sequence[int]) -> Tensor:
    """An index tensor of zeros, to learn where planes of other dims go."""
    return torch.zeros(tuple(shape), dtype=torch.long)
