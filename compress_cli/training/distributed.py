"""This process among others: rank, world size, and sums over all of them; alone when there is no process group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from compress_cli.errors import InputError

T = TypeVar("T")

_BY_ITSELF = ContextVar("_BY_ITSELF", default=False)


def active() -> bool:
    """Whether several processes work together here."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and not _BY_ITSELF.get()


@contextmanager
def by_itself() -> Iterator[None]:
    """Inside, this process waits for no other: sums are its own, it is the first and only one."""
    token = _BY_ITSELF.set(True)
    try:
        yield
    finally:
        _BY_ITSELF.reset(token)


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if active() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if active() else 1


def add_up_(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes in place; exact for whole numbers in float64."""
    if active():
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Give tensors of any type and layout the first process's values, bit for bit."""
    if not active():
        return
    for tensor in tensors:
        if tensor.numel():
            values = tensor.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(values.view(-1).view(torch.uint8), 0)
            tensor.copy_(values)


def any_true(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if not active():
        return flag
    return bool(add_up_(torch.tensor(float(flag), device=device)) > 0)


def computed_by_first(compute: Callable[[], T]) -> T:
    """What `compute` returns in the first process, in all of them (a plan, for example); the others wait for it.

    Raises:
        InputError: in the other processes, when it failed in the first one, which raises its own error.
    """
    if not active():
        return compute()
    answer: list[tuple[Any, str]] = [(None, "")]
    failure: Exception | None = None
    if rank() == 0:
        try:
            with by_itself():
                answer = [(compute(), "")]
        except Exception as error:  # whatever it is, the others must not wait for ever
            failure = error
            answer = [(None, f"{type(error).__name__}: {error}")]
    dist.broadcast_object_list(answer)
    if failure is not None:
        raise failure
    found, reason = answer[0]
    if reason:
        raise InputError(f"the first process failed: {reason}", "see its own message")
    value: T = found
    return value


def from_first(value: Any) -> Any:
    """The first process's value in all of them; the value itself when alone."""
    return computed_by_first(lambda: value)
