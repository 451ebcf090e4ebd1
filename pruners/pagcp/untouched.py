"""Which tensors of a forward pass no change of weights has reached: those have exactly the values that they had before.

A tensor is untouched when it was made from untouched ones only. That is followed through every torch function, modules
and free functions alike, so the head of one task is found untouched when only another head changes, however the two
are wired. In doubt a tensor counts as reached: what is not seen, random numbers, and everything after a value has left
torch (`item`, a shape that depends on data, numpy), because Python may carry it anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

_RANDOM = ("rand", "normal", "dropout", "bernoulli", "multinomial", "exponential_", "uniform_", "cauchy_", "geometric_")
_SHAPED_BY_DATA = {
    *("nonzero", "argwhere", "unique", "unique_consecutive", "_unique2", "masked_select", "nms", "bincount")
}
_ALIASES = {"data", "numpy", "__array__", "data_ptr", "untyped_storage", "storage", "set_"}
"""Ways to write into a tensor without its version being counted."""
_DESCRIBING = {
    *("shape", "size", "dim", "ndim", "dtype", "device", "numel", "nelement", "layout", "stride", "__len__"),
    *("requires_grad", "is_cuda", "is_sparse", "is_quantized", "is_nested", "is_floating_point", "is_complex"),
    *("is_contiguous", "grad", "is_leaf", "names", "element_size", "get_device", "is_mkldnn", "is_meta", "itemsize"),
    *("is_signed", "_version", "type", "__hash__", "is_cpu", "is_mps", "is_xla", "is_same_size", "grad_fn"),
}
"""What tells nothing of a tensor's values."""


class Untouched(TorchFunctionMode):
    """Follows untouched tensors while it is active.

    Args:
        changed: tensors whose values are not what they were.
        known: tensors that are as they were: inputs, and the model's other tensors.
    """

    def __init__(self, changed: Iterable[Tensor], known: Iterable[Tensor]) -> None:
        super().__init__()
        gone = {id(tensor) for tensor in changed}
        self._versions = WeakIdKeyDictionary()
        self._lost = False
        self.add([tensor for tensor in known if id(tensor) not in gone])

    def add(self, found: Any) -> None:
        """Note the tensors of a value as untouched."""
        for tensor in _tensors(found):
            version = _version(tensor)
            if version is not None:
                self._versions[tensor] = version

    def holds(self, value: Any) -> bool:
        """Whether all tensors of a value are untouched, and nothing has left torch that was not."""
        return not self._lost and all(self._knows(tensor) for tensor in _tensors(value))

    def _knows(self, tensor: Tensor) -> bool:
        return tensor in self._versions and self._versions[tensor] == _version(tensor)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given: tuple[tuple[Any, ...], Mapping[str, Any]] = (args, kwargs or {})
        name = _name(func)
        untouched = self.holds(given) and not name.removeprefix("_").startswith(_RANDOM)
        found = func(*args, **(kwargs or {}))
        if name in _ALIASES:
            self._lost = True
        elif untouched:
            self.add(given)  # written in place from untouched values
            self.add(found)
        elif _tells(name, args, found):
            self._lost = True
        return found


def _tells(name: str, args: tuple[Any, ...], found: Any) -> bool:
    """Whether values of a reached tensor come back as Python numbers, or as a shape."""
    if name in _SHAPED_BY_DATA or (name == "where" and len(args) == 1):
        return True
    if name == "__getitem__":
        return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in _tensors(args[1:]))
    return found is not None and not _tensors(found) and name not in _DESCRIBING


def _name(func: Callable[..., Any]) -> str:
    """The function's name; of a property's `__get__` or `__set__`, the property's."""
    name: str = getattr(func, "__name__", "")
    owner = getattr(func, "__self__", None)
    if name in ("__get__", "__set__", "__delete__") and owner is not None:
        name = getattr(owner, "__name__", "")
    return name.partition(".")[0]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _version(tensor: Tensor) -> int | None:
    with torch._C.DisableTorchFunction():
        return None if tensor.is_inference() else tensor._version
