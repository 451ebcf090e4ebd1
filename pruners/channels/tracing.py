"""From a module to functional graphs: `torch.export` of the eval and the train forward, without changing the module."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from profilers.modes import modes_kept
from pruners.channels.errors import CannotTrace

Mode = Literal["eval", "train"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One way into the model: its arguments and the mode it is traced in."""

    mode: Mode
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def shapes(self) -> list[str]:
        """The tensor arguments as text, such as `float32[2, 3, 32, 32]`."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [f"{str(x.dtype)[6:]}{list(x.shape)}" for x in leaves if isinstance(x, Tensor)]


def entries_of(example_inputs: Sequence[Any], modes: Sequence[Mode] = ("eval", "train")) -> list[Entry]:
    """The default entries: the same example in eval and in train mode, there with a batch of at least 2."""
    args = tuple(example_inputs)
    return [Entry(mode, doubled(args) if mode == "train" else args, {}) for mode in modes]


def doubled(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Repeat the batch when it is 1: BatchNorm refuses one value per channel."""
    leaves = [x for x in pytree.tree_leaves(args) if isinstance(x, Tensor)]
    if not leaves or any(x.dim() < 2 or x.shape[0] != 1 for x in leaves):
        return args
    found: tuple[Any, ...] = pytree.tree_map(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) else x, args)
    return found


@contextmanager
def mode_of(model: nn.Module, mode: Mode) -> Iterator[None]:
    """Put a model in eval or train mode and restore every module's own flag afterwards."""
    with modes_kept(model):
        model.train(mode == "train")
        yield


@contextmanager
def _fixed_momentum(model: nn.Module) -> Iterator[None]:
    """Batch norms with a cumulative average (`momentum=None`) read a counter as a number, which no tracer follows.

    Inside they average exponentially: the same channels meet.
    """
    found = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.momentum is None]
    try:
        for module in found:
            module.momentum = 0.1
        yield
    finally:
        for module in found:
            module.momentum = None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the tracer's warnings and log lines, and the fused inference path of transformers, out of the way."""
    disabled = logging.root.manager.disable
    fast = torch.backends.mha.get_fastpath_enabled()
    logging.disable(logging.CRITICAL)  # torch's loggers have levels of their own, and print whole graphs
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fast)


def export(model: nn.Module, entry: Entry, dynamic_shapes: Any = None) -> ExportedProgram:
    """Trace one entry as it is written, with in-place operators.

    Args:
        dynamic_shapes: as `torch.export.export` takes them; None: every size is fixed.

    Raises:
        CannotTrace: with the first line of the tracer's message.
    """
    try:
        with mode_of(model, entry.mode), _fixed_momentum(model), quiet(), torch.no_grad():
            program: ExportedProgram = torch.export.export(
                model, entry.args, dict(entry.kwargs), dynamic_shapes=dynamic_shapes, strict=False
            )
            return program
    except Exception as error:
        raise CannotTrace(entry.mode, _first_line(error)) from error


def _copy(self: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    """`aten.copy`, what a write into a slice becomes, in operators that have a derivative."""
    return src.to(self.dtype).expand(self.shape)


def functional(program: ExportedProgram, mode: Mode) -> ExportedProgram:
    """Replace in-place writes by pure operators (a table for nothing else changes hardly anything else)."""
    try:
        with quiet(), torch.no_grad():
            pure: ExportedProgram = program.run_decompositions(decomp_table={torch.ops.aten.copy.default: _copy})
            return pure
    except Exception as error:
        raise CannotTrace(mode, _first_line(error)) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:300] if lines else type(error).__name__


_ASSERTIONS = frozenset(
    {
        "_assert_tensor_metadata",
        "_assert_scalar",
        "_assert_async",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    }
)


def is_assertion(node: torch.fx.Node) -> bool:
    """Whether a node only checks the types, sizes or values of the traced run, and makes nothing."""
    return str(node.target).removeprefix("aten.").partition(".")[0] in _ASSERTIONS


_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ([^\n]+)')


def source_line(node: torch.fx.Node) -> str:
    """The innermost line of code outside torch that made a node, as `file.py:12`; empty when unknown."""
    frames = frames_of(node.meta.get("stack_trace") or "")
    if not frames:
        return ""
    path, line = next((f for f in reversed(frames) if "/torch/" not in f[0]), frames[-1])
    return f"{path.rsplit('/', 1)[-1]}:{line}"


def frames_of(stack: str) -> list[tuple[str, int]]:
    """All (file, line) of a recorded stack trace, outermost first."""
    return [(path, int(line)) for path, line, _ in _FRAME.findall(stack)]


def owner_of(node: torch.fx.Node) -> str:
    """The dotted name of the innermost module whose forward made a node."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(name) for name, _ in stack.values()]
    return re.sub(r"@\d+$", "", names[-1]) if names else ""
