"""The routine: trace both networks, solve layer by layer in execution order, keep what held-out images approve."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from compress_cli.recovery.correspondence import Correspondence, as_correspondence
from compress_cli.recovery.errors import CannotTrace, DoNotMatch
from compress_cli.recovery.hooked import recover_hooked
from compress_cli.recovery.images import Images, arrange
from compress_cli.recovery.jobs import Job, make_jobs
from compress_cli.recovery.norms import NormTries
from compress_cli.recovery.outputs import output_error
from compress_cli.recovery.record import LayerRecovery, RecoveryRecord
from compress_cli.recovery.sensitivity import position_weights, sensitivities
from compress_cli.recovery.solving import Pair, Removal, solve_
from compress_cli.recovery.stream import Stream
from compress_cli.recovery.trace import Traced, trace
from profilers.modes import eval_mode
from pruners.batchnorm import Statistics, restore_, statistics, tracked_norms

Step = Callable[[int, int, str], None]
SENSITIVE_IMAGES = 256
"""Images on which the sensitivity of the outputs is measured."""
WEIGHTED_VALUES = 1 << 24
"""Input values up to which positions are weighted on a CPU."""
FEWEST_IMAGES = 128
"""So many images are used for every layer, if there are as many."""


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """How recovery works.

    Attributes:
        ridges: tried for every output channel, relative to the diagonal of the Gram matrix; held-out images choose.
        holdout: share of the images that only checks.
        batch_size: most images in work at a time.
        rows_per_unknown: rows of the fit for each column of the patches (at least 20,000 in all); positions beyond are
            left out at random.
        memory: bytes of values kept between layers for both networks together. Where they do not fit, early layers
            are solved on as many images as do, and at least on 128; what does not fit even then is computed again.
        columns: largest Gram matrix; wider layers are solved in blocks.
        sums: whether layers that end in an addition also correct its other operand.
        batch_norms: whether re-estimated batch norms are tried.
        weighted: whether positions count as much as the outputs feel them, which takes a few backward passes; None
            where these are cheap: at most 2^24 input values in all, or on a GPU.
    """

    ridges: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2)
    holdout: float = 0.2
    batch_size: int = 64
    rows_per_unknown: int = 64
    memory: int = 2 << 30
    columns: int = 4700
    sums: bool = True
    batch_norms: bool = True
    weighted: bool | None = None

    def __post_init__(self) -> None:
        if not self.ridges or min(self.ridges) < 0:
            raise ValueError(f"ridges must be at least one number of 0 or more, not {self.ridges}")
        if min(self.batch_size, self.rows_per_unknown, self.columns) < 1 or self.memory < 0:
            raise ValueError("batch_size, rows_per_unknown and columns must be at least 1, memory at least 0")


def recover(
    dense: nn.Module,
    compressed: nn.Module,
    batches: Sequence[Tensor | Sequence[Tensor]],
    *,
    correspondence: Any = None,
    seed: int = 0,
    ridge: float | None = None,
    holdout: float | None = None,
    options: RecoveryOptions | None = None,
    on_step: Step | None = None,
    zeros: Mapping[str, int] | None = None,
) -> RecoveryRecord:
    """Solve the weights that are left for the original's pre-activations, in place.

    Zeros stay zero, shapes and names stay; biases and the means of following batch norms may change.

    Args:
        dense: the original, on the same device; not changed.
        compressed: the same network after weights, channels or ranks were removed; changed in place.
        batches: unlabelled images (images, ...), or tuples of the networks' positional arguments.
        correspondence: what was removed, as `as_correspondence` accepts it; None where zeros and structure say it.
        seed: of the split and of the choice of positions.
        ridge: one ridge instead of the options' choice.
        holdout: share of the images to check on, instead of the options'.
        options: see `RecoveryOptions`.
        on_step: called with (steps done, steps in all, what comes next).
        zeros: weight tensor -> how many of its entries shall be zero: which ones is decided layer by layer, by the
            price of their removal after compensation, on what earlier layers hand on. `compressed` is a copy of the
            original then. Removal is not undone, whatever the outputs say.

    Raises:
        NoImages: fewer than 2 images.
        CannotTrace: a network cannot be traced, and `zeros` are asked for or it does not run at all; otherwise such
            networks are recovered with less (`hooked.py`).
        DoNotMatch: the two are not the same network before and after.
    """
    begin = time.perf_counter()
    options = _with(options or RecoveryOptions(), ridge, holdout)
    images = arrange(batches, options.batch_size, options.holdout, seed)
    report, given = on_step or (lambda done, total, text: None), as_correspondence(correspondence)
    try:
        run = _Run(dense, compressed, images, given, options, seed)
    except CannotTrace as error:
        if zeros:
            raise
        return recover_hooked(dense, compressed, images, given, options, seed, report, error)
    if zeros:
        run.refuse_unknown(zeros)
    layers = run.solve(report, zeros or {})
    if zeros:
        run.forget(zeros)
    chosen, candidates = run.choose()
    errors = dict(candidates)
    return RecoveryRecord(
        layers=tuple(layers),
        skipped=tuple(run.skipped),
        before=errors["as compressed"],
        after=errors[chosen],
        chosen=chosen,
        candidates=tuple(candidates),
        images=images.count,
        held_out=images.held_out,
        seconds=time.perf_counter() - begin,
    )


def _with(options: RecoveryOptions, ridge: float | None, holdout: float | None) -> RecoveryOptions:
    if ridge is not None:
        options = replace(options, ridges=(ridge,))
    return options if holdout is None else replace(options, holdout=holdout)


class _Run:
    """One recovery in progress."""

    def __init__(
        self,
        dense: nn.Module,
        compressed: nn.Module,
        images: Images,
        correspondence: Correspondence,
        options: RecoveryOptions,
        seed: int,
    ) -> None:
        self.dense, self.compressed, self.correspondence = dense, compressed, correspondence
        self.images, self.options, self.seed = images, options, seed
        self.device = next(compressed.parameters()).device
        example = tuple(part.to(self.device) for part in images.batches[0])
        original, found = trace(dense, example, "original"), trace(compressed, example, "compressed")
        self.jobs, self.skipped = make_jobs(original, found, correspondence)
        budget = options.memory // 2
        theirs, ours = (Stream(traced, images.batches, budget, self.device) for traced in (original, found))
        self.pair = Pair(theirs, ours, tuple(range(len(images.batches))), self._weights(original))
        self.held = range(images.fitted, len(images.batches))
        self.saved = {name: tensor.detach().clone() for name, tensor in self._changeable().items()}
        self.first = self._error()

    def _weights(self, original: Traced) -> list[dict[Node, Tensor]]:
        values = sum(part.numel() for batch in self.images.batches for part in batch)
        wanted = self.options.weighted
        if wanted is False or (wanted is None and self.device.type == "cpu" and values > WEIGHTED_VALUES):
            return []
        batches = [tuple(part.to(self.device) for part in batch) for batch in self.images.batches]
        return position_weights(original, batches, self.seed)

    def _changeable(self) -> dict[str, Tensor]:
        tensors = self.pair.compressed.traced.tensors()
        norms = {id(buffer) for norm in tracked_norms(self.compressed) for buffer in norm.buffers()}
        names = {job.name for job in self.jobs} | {job.offset.name for job in self.jobs if job.offset}
        return {name: tensor for name, tensor in tensors.items() if name in names or id(tensor) in norms}

    def _error(self) -> float:
        """Error of the outputs on the held-out images, from what the streams hold."""
        original, compressed = self.pair.original, self.pair.compressed
        return output_error((original.outputs(index), compressed.outputs(index)) for index in self.held)

    def refuse_unknown(self, zeros: Mapping[str, int]) -> None:
        """Weights to thin out must be among those that are solved.

        Raises:
            DoNotMatch: some are not.
        """
        missing = sorted(set(zeros) - {job.name for job in self.jobs})
        if missing:
            raise DoNotMatch(f"zeros are asked of {', '.join(missing[:3])}, which no layer multiplies by")

    def solve(self, on_step: Step, zeros: Mapping[str, int]) -> list[LayerRecovery]:
        """Solve all layers in order, after removing what `zeros` asks for."""
        feelings = self._feelings() if zeros else {}
        pending = list(self.jobs)
        generator = torch.Generator().manual_seed(self.seed)
        layers = []
        for done, job in enumerate(self.jobs):
            on_step(done, len(self.jobs), job.name)
            self._settle(pending)
            later = {node for other in pending[1:] for node in (*other.compressed_nodes, *other.original_nodes)}
            removal = Removal(zeros[job.name], feelings.get(job.name)) if job.name in zeros else None
            layers.append(solve_(self.pair, job, later, self.images.fitted, self.options, generator, removal))
            pending.pop(0)
        self._settle(pending)
        on_step(len(self.jobs), len(self.jobs), "")
        return layers

    def _feelings(self) -> dict[str, Tensor]:
        batches = self.images.batches[: self.images.fitted][: max(SENSITIVE_IMAGES // self.images.size, 1)]
        found = [tuple(part.to(self.device) for part in batch) for batch in batches]
        return sensitivities(self.pair.compressed.traced, found, self.seed)

    def _settle(self, pending: Sequence[Job]) -> None:
        # the original's layer is wanted itself, so it is kept rather than what follows it
        current = {user for job in pending[:1] for node in job.original_nodes for user in node.users}
        theirs = current | {node for job in pending[1:] for node in job.original_nodes}
        ours = {node for job in pending for node in job.compressed_nodes}
        room = min(self.pair.original.room(theirs), self.pair.compressed.room(ours))
        self.pair.active = self.images.spread(max(room, -(-FEWEST_IMAGES // self.images.size)))
        self.pair.original.settle(theirs, self.pair.active)
        self.pair.compressed.settle(ours, self.pair.active)

    def forget(self, names: Iterable[str]) -> None:
        """Make the compressed network without least squares the one whose removed weights are zero too."""
        tensors, now = self.pair.compressed.traced.tensors(), self._copy()
        for name in names:
            self.saved[name] = torch.where(tensors[name] == 0, 0.0, self.saved[name])
        self._write(self.saved)
        self.first = self._fresh_error()
        self._write(now)

    def choose(self) -> tuple[str, list[tuple[str, float]]]:
        """Keep the candidate whose outputs are nearest to the original's on held-out images."""
        candidates = [("as compressed", self.first), ("least squares", self._error())]
        states = {"as compressed": self.saved, "least squares": self._copy()}
        norms: dict[str, tuple[str, Statistics]] = {}
        if self.options.batch_norms and tracked_norms(self.compressed):
            tries = NormTries(self.dense, self.images, self.device, self.correspondence)
            for start in states:
                self._write(states[start])
                for name in tries.on(self.compressed, start):
                    norms[name] = (start, statistics(self.compressed))
                    candidates.append((name, self._fresh_error()))
        chosen = min(candidates, key=lambda item: (item[1], len(item[0])))[0]
        if dict(candidates)[chosen] >= self.first:
            chosen = "as compressed"
        start, stored = norms.get(chosen, (chosen, {}))
        self._write(states[start])
        restore_(self.compressed, stored)
        return chosen, candidates

    def _fresh_error(self) -> float:
        """Error of the outputs on the held-out images, from a full pass of the compressed network."""
        stream = Stream(self.pair.compressed.traced, [self.images.batches[i] for i in self.held], 0, self.device)
        original = self.pair.original
        with eval_mode(self.compressed):
            pairs = ((original.outputs(index), stream.outputs(place)) for place, index in enumerate(self.held))
            return output_error(pairs)

    def _copy(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._changeable().items()}

    @torch.no_grad()
    def _write(self, state: dict[str, Tensor]) -> None:
        tensors: dict[str, Any] = self.pair.compressed.traced.tensors()
        for name, value in state.items():
            tensors[name].copy_(value)
