"""Recovery of networks that cannot be traced: the same least squares, with inputs and outputs caught by hooks.

Modules stand for layers. Without a graph nothing is known about what lies between them, so sums are not corrected,
constants go into biases only, and every layer is reached by running both networks up to it again. Layers that run more
than once, or pad with something else than zeros, are left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compress_cli.recovery.correspondence import Correspondence
from compress_cli.recovery.errors import CannotTrace, DoNotMatch
from compress_cli.recovery.geometry import Geometry, Kind
from compress_cli.recovery.images import Batch, Images
from compress_cli.recovery.normal import NormalEquations
from compress_cli.recovery.norms import NormTries
from compress_cli.recovery.outputs import output_error
from compress_cli.recovery.record import LayerRecovery, RecoveryRecord
from compress_cli.recovery.solving import FEWEST_ROWS, Layer, Spread, improve
from profilers.modes import eval_mode
from pruners.batchnorm import Statistics, restore_, statistics, tracked_norms

if TYPE_CHECKING:
    from compress_cli.recovery.routine import RecoveryOptions

_KINDS: tuple[tuple[type[nn.Module], Kind], ...] = (
    (nn.modules.conv._ConvTransposeNd, "transposed"),
    (nn.modules.conv._ConvNd, "conv"),
    (nn.Linear, "linear"),
)


class _Reached(Exception):
    """Ends a run of a network at the layer that was wanted."""


@dataclass(frozen=True, slots=True)
class _Pairing:
    """One layer in both networks; `kept`: the original's output channels that remain, None for all."""

    name: str
    original: nn.Module
    compressed: Any
    geometry: Geometry
    kept: Tensor | None


def recover_hooked(
    dense: nn.Module,
    compressed: nn.Module,
    images: Images,
    correspondence: Correspondence,
    options: RecoveryOptions,
    seed: int,
    on_step: Callable[[int, int, str], None],
    refused: CannotTrace,
) -> RecoveryRecord:
    """Do what `recover` does where no graph is to be had.

    Args:
        refused: why not; the record says so.

    Raises:
        CannotTrace: `refused` itself, when the network does not run by hand either.
        DoNotMatch: no layer of the one has a counterpart in the other.
    """
    begin = time.perf_counter()
    device = next(compressed.parameters()).device
    batches = [tuple(part.to(device) for part in batch) for batch in images.batches]
    held = batches[images.fitted :]
    skipped = [("sums of branches", f"not corrected, {refused}")]
    with eval_mode(dense, compressed), torch.no_grad():
        try:
            pairs = _pairs(dense, compressed, correspondence, batches[0], skipped)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise refused from error
        saved = {name: tensor.clone() for name, tensor in compressed.state_dict().items()}
        errors = {"as compressed": _distance(dense, compressed, held)}
        states = {"as compressed": saved}
        generator = torch.Generator().manual_seed(seed)
        layers = []
        for done, pair in enumerate(pairs):
            on_step(done, len(pairs), pair.name)
            layers.append(_solve_(dense, compressed, pair, batches, images.fitted, options, generator))
        on_step(len(pairs), len(pairs), "")

        states["least squares"] = {key: tensor.clone() for key, tensor in compressed.state_dict().items()}
        errors["least squares"] = _distance(dense, compressed, held)
        norms: dict[str, tuple[str, Statistics]] = {}
        if options.batch_norms and tracked_norms(compressed):
            tries = NormTries(dense, images, device, correspondence)
            for start in states:
                compressed.load_state_dict(states[start])
                for name in tries.on(compressed, start):
                    norms[name] = (start, statistics(compressed))
                    errors[name] = _distance(dense, compressed, held)
        chosen = min(errors, key=lambda name: (errors[name], len(name)))
        if errors[chosen] >= errors["as compressed"]:
            chosen = "as compressed"
        start, stored = norms.get(chosen, (chosen, {}))
        compressed.load_state_dict(states[start])
        restore_(compressed, stored)
    return RecoveryRecord(
        layers=tuple(layers),
        skipped=tuple(skipped),
        before=errors["as compressed"],
        after=errors[chosen],
        chosen=chosen,
        candidates=tuple(errors.items()),
        images=images.count,
        held_out=images.held_out,
        seconds=time.perf_counter() - begin,
    )


def _pairs(
    dense: nn.Module,
    compressed: nn.Module,
    correspondence: Correspondence,
    batch: Batch,
    skipped: list[tuple[str, str]],
) -> list[_Pairing]:
    """Layers of both networks in the order in which the compressed one runs them."""
    theirs, ours = _runs(dense, batch), _runs(compressed, batch)
    modules, small = dict(dense.named_modules()), dict(compressed.named_modules())
    present = [f"{name}.weight" for name in ours]
    found: dict[str, _Pairing] = {}
    for name, count in theirs.items():
        weight = f"{name}.weight"
        partner = correspondence.partner(weight, present)
        reason = None
        if partner is None:
            reason = "not in the compressed network"
        elif correspondence.leaves_alone(weight) or correspondence.leaves_alone(partner):
            reason = "ignored"
        elif count > 1 or ours[partner.removesuffix(".weight")] > 1:
            reason = "runs more than once"
        elif getattr(small[partner.removesuffix(".weight")], "padding_mode", "zeros") != "zeros":
            reason = "does not pad with zeros"
        if partner is None or reason is not None:
            skipped.append((weight, reason or ""))
            continue
        module: Any = small[partner.removesuffix(".weight")]
        geometry = _geometry(module)
        kept = correspondence.kept(weight, 1 if geometry.kind == "transposed" else 0)
        indices = None if kept is None else torch.as_tensor(list(kept), dtype=torch.int64)
        outputs = _width(modules[name]) if indices is None else len(indices)
        if outputs != _width(module):
            raise DoNotMatch(f"{partner} gives {_width(module)} output channels, {outputs} are expected")
        found[partner] = _Pairing(partner, modules[name], module, geometry, indices)
    if not found:
        raise DoNotMatch("no layer of the original network has a counterpart in the compressed one")
    return [found[name] for name in present if name in found]


def _runs(net: nn.Module, batch: Batch) -> dict[str, int]:
    """How often each supported layer runs, in the order of the first time."""
    counts: dict[str, int] = {}

    def notice(name: str) -> Callable[..., None]:
        return lambda *_: counts.update({name: counts.get(name, 0) + 1})

    kinds = tuple(kind for kind, _ in _KINDS)
    handles = [m.register_forward_hook(notice(n)) for n, m in net.named_modules() if isinstance(m, kinds)]
    try:
        net(*batch)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _width(module: Any) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def _geometry(module: Any) -> Geometry:
    kind = next(kind for base, kind in _KINDS if isinstance(module, base))
    if kind == "linear":
        return Geometry("linear")
    kernel = tuple(module.kernel_size)
    if isinstance(module.padding, str):
        total = [d * (k - 1) if module.padding == "same" else 0 for d, k in zip(module.dilation, kernel, strict=True)]
        pads = tuple((size // 2, size - size // 2) for size in total)
    else:
        pads = tuple((size, size) for size in module.padding)
    extra = tuple(module.output_padding) if kind == "transposed" else ()
    return Geometry(kind, module.groups, kernel, tuple(module.stride), pads, tuple(module.dilation), extra)


def _caught(net: nn.Module, module: nn.Module, batch: Batch, *, output: bool) -> Tensor | None:
    """The input or output of one layer; None when the network does not come by it."""
    seen: list[Tensor] = []

    def catch_input(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0])
        raise _Reached

    def catch_output(_: nn.Module, arguments: Any, result: Tensor) -> None:
        seen.append(result)
        raise _Reached

    handle = module.register_forward_hook(catch_output) if output else module.register_forward_pre_hook(catch_input)
    try:
        net(*batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0] if seen else None


def _solve_(
    dense: nn.Module,
    compressed: nn.Module,
    pair: _Pairing,
    batches: list[Batch],
    fitted: int,
    options: RecoveryOptions,
    generator: torch.Generator,
) -> LayerRecovery:
    module, geometry = pair.compressed, pair.geometry
    matrix = geometry.matrix(module.weight.detach().double())
    support, columns = matrix != 0, matrix.shape[1]
    if module.bias is not None:
        offset = module.bias.detach().double().reshape(matrix.shape[0], 1, -1)
        matrix = torch.cat([matrix, offset], 1)
        support = torch.cat([support, torch.ones_like(offset, dtype=torch.bool)], 1)
    layer = Layer(matrix, support, module.bias is not None)
    sizes = (matrix.shape[0], matrix.shape[1], matrix.shape[2], matrix.device)
    fit, held, spread = NormalEquations.empty(*sizes), NormalEquations.empty(*sizes), Spread(matrix)
    limit = -(-max(options.rows_per_unknown * matrix.shape[1], FEWEST_ROWS) // fitted)
    for index, batch in enumerate(batches):
        x = _caught(compressed, module, batch, output=False)
        y = _caught(dense, pair.original, batch, output=True)
        if x is None or y is None:
            continue
        if pair.kept is not None:
            y = y.index_select(geometry.channel_axis, pair.kept.to(y.device))
        windows = geometry.windows(x)
        places, chosen = geometry.places(windows).numel(), None
        if places > limit:
            chosen = torch.randperm(places, generator=generator)[:limit].sort().values.to(windows.device)
        patches, targets = geometry.rows(windows, chosen), geometry.outputs(y, chosen)
        if layer.with_offset:
            patches = torch.cat([patches, patches.new_ones(*patches.shape[:2], 1)], 2)
        sums = fit if index < fitted else held
        sums.add(patches, targets - patches @ matrix.to(patches.dtype))
        if sums is held:
            spread.add(targets)
    old = matrix.clone()
    (before, after), ridge = (0.0, 0.0), 0.0
    if fit.rows and held.rows and matrix.shape[1] <= options.columns:
        (before, after), ridge = improve(layer, slice(0, matrix.shape[1]), fit, held, spread, options.ridges)
    changed = bool((layer.matrix != old).any())
    if changed:
        solved = torch.where(layer.support, layer.matrix, 0.0)
        module.weight.copy_(geometry.weight(solved[:, :columns], module.weight))
        if module.bias is not None:
            module.bias.copy_(solved[:, columns:].reshape(module.bias.shape))
    total = spread.value()
    count = int(layer.support.sum())
    return LayerRecovery(pair.name, changed, before / total, after / total, ridge, False, 1, count, fit.rows)


def _distance(dense: nn.Module, compressed: nn.Module, batches: list[Batch]) -> float:
    """Error of the outputs, as `output_error` has it."""
    return output_error((_outputs(dense, batch), _outputs(compressed, batch)) for batch in batches)


def _outputs(net: nn.Module, batch: Batch) -> list[Tensor]:
    found = pytree.tree_leaves(net(*batch))
    return [item for item in found if isinstance(item, Tensor) and item.is_floating_point()]
