"""Second moments of a layer's outputs and input patches over unlabelled images: what data-aware ranks are chosen from.

With x the im2col patch of one position (length c K, in the order of `weight.flatten(1)`) and y = W x the output without
bias, averages over all positions give C = <x x'>, <y y'> = W C W' and <y>. One slice needs only <y y'> (f x f), which
is read off the outputs and so costs no patches; several slices need C, collected for Conv1d and Conv2d.
Everything is summed in float64, some layers at a time where the memory allowed does not hold all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from decomposers.layers import Layer
from decomposers.observe import Inputs, run
from profilers.modes import eval_mode

MEMORY = 2 << 30
CHUNK = 1 << 24
"""Patch values that are held at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Averages over the positions of one layer, float64; G is the layer's own number of groups.

    Attributes:
        outputs: (G, f/G, f/G) <y y'>, without bias, not centred.
        mean: (G, f/G) <y>.
        inputs: (G, c/G K, c/G K) <x x'>; None where it was not asked for.
    """

    outputs: Tensor
    mean: Tensor
    inputs: Tensor | None = None

    @property
    def centred(self) -> Tensor:
        """Return the covariance of the outputs: (G, f/G, f/G)."""
        return self.outputs - self.mean.unsqueeze(2) * self.mean.unsqueeze(1)


class _Sums:
    """Running sums of one layer."""

    def __init__(self, layer: Layer, patches: bool) -> None:
        self.layer, self.patches, self.count = layer, patches, 0
        shape = layer.shape
        groups, rows = shape.groups, shape.out_channels // shape.groups
        columns = shape.slice_width * shape.kernel_size
        self.mean = torch.zeros(groups, rows, dtype=torch.float64)
        size = columns if patches else rows
        self.squares = torch.zeros(groups, size, size, dtype=torch.float64)

    def add(self, module: Any, value: Tensor, output: Tensor) -> None:
        """Add one call of the layer."""
        rows = _rows(output.detach(), self.layer)  # (G, positions, f/G)
        if module.bias is not None:
            rows = rows - module.bias.detach().reshape(rows.shape[0], 1, -1)
        self.mean += rows.sum(1, dtype=torch.float64).cpu()
        self.count += rows.shape[1]
        if not self.patches:
            self._add_squares(rows)
            return
        for part in _patches(module, value.detach(), self.layer):
            self._add_squares(part)

    def _add_squares(self, rows: Tensor) -> None:
        step = max(1, CHUNK // (rows.shape[0] * rows.shape[2]))
        for start in range(0, rows.shape[1], step):
            part = rows[:, start : start + step].double()
            self.squares += (part.mT @ part).cpu()

    def moments(self, weight: Tensor) -> Moments:
        """Return the averages."""
        squares, mean = self.squares / max(self.count, 1), self.mean / max(self.count, 1)
        if not self.patches:
            return Moments(squares, mean)
        matrix = weight.detach().double().cpu().reshape(self.mean.shape[0], self.mean.shape[1], -1)
        return Moments(matrix @ squares @ matrix.mT, mean, squares)


def _rows(output: Tensor, layer: Layer) -> Tensor:
    """Bring an output into (G, positions, f/G)."""
    axes = len(layer.shape.kernel)
    if axes:
        output = output.movedim(output.ndim - axes - 1, -1)
    rows = output.reshape(-1, layer.shape.groups, layer.shape.out_channels // layer.shape.groups)
    return rows.transpose(0, 1)


def patches_supported(layer: Layer) -> bool:
    """Tell whether several slices can be judged by the output's error: patches of Conv1d and Conv2d are collected."""
    return not layer.shape.transposed and len(layer.shape.kernel) in (1, 2)


def _padding(module: Any, axis: int) -> tuple[int, int]:
    """Return how much a convolution pads before and after along one axis; `same` pads more after than before."""
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        total = module.dilation[axis] * (module.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    return module.padding[axis], module.padding[axis]


def _patches(module: Any, value: Tensor, layer: Layer) -> Iterator[Tensor]:
    """Yield the input patches of one call, some images at a time: (G, positions, c/G K)."""
    shape = layer.shape
    axes = len(shape.kernel)
    images = value.reshape(-1, *value.shape[value.ndim - axes - 1 :])
    pads = [size for axis in reversed(range(axes)) for size in _padding(module, axis)]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    flat = (1,) if axes == 1 else ()
    kernel, stride, dilation = ((*flat, *sizes) for sizes in (module.kernel_size, module.stride, module.dilation))
    step = max(1, CHUNK // (shape.in_channels * shape.kernel_size * max(1, images[0, 0].numel())))
    for start in range(0, len(images), step):
        padded = functional.pad(images[start : start + step], pads, mode=mode)
        padded = padded.unsqueeze(-2) if axes == 1 else padded
        columns = functional.unfold(padded, kernel, dilation=dilation, stride=stride)  # (images, c K, positions)
        grouped = columns.reshape(len(columns), shape.groups, -1, columns.shape[-1])
        yield grouped.permute(1, 0, 3, 2).flatten(1, 2)


def _modules(model: nn.Module, layer: Layer) -> list[nn.Module]:
    """Return the modules that use a layer's weight, each once."""
    every = dict(model.named_modules(remove_duplicate=False))
    return list(dict.fromkeys(every[name] for name in layer.names))


@contextmanager
def _collecting(model: nn.Module, sums: Sequence[_Sums]) -> Iterator[None]:
    """Add every call of the layers to their sums while the context lasts."""
    handles = []

    def hook_for(item: _Sums) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            item.add(module, args[0], output)

        return hook

    try:
        for item in sums:
            handles += [module.register_forward_hook(hook_for(item)) for module in _modules(model, item.layer)]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _passes(sums_bytes: Sequence[int], memory: int) -> list[list[int]]:
    """Split layers into runs that fit the memory, at least one layer per run."""
    runs: list[list[int]] = [[]]
    used = 0
    for index, size in enumerate(sums_bytes):
        if runs[-1] and used + size > memory:
            runs.append([])
            used = 0
        runs[-1].append(index)
        used += size
    return runs


def collect_moments(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Inputs],
    max_groups: int | None = None,
    memory: int = MEMORY,
) -> dict[str, Moments]:
    """Run images through a model and return the moments of its layers.

    Args:
        model: not changed; evaluation mode.
        layers: from `find_layers`.
        batches: unlabelled inputs, gone through once or, where the sums of all layers exceed `memory`, several times.
        max_groups: with 1, patches are not collected.
        memory: bytes that the sums may take at a time.

    Raises:
        ValueError: no images.
    """
    if not batches:
        raise ValueError("moments need images")
    wanted = [max_groups != 1 and patches_supported(layer) for layer in layers]
    sizes = [_bytes(layer, patches) for layer, patches in zip(layers, wanted, strict=True)]
    found: dict[str, Moments] = {}
    for indices in _passes(sizes, memory):
        sums = [_Sums(layers[index], wanted[index]) for index in indices]
        with _collecting(model, sums), eval_mode(model), torch.no_grad():
            for batch in batches:
                run(model, batch)
        for item in sums:
            weight: Any = model.get_submodule(item.layer.name).weight
            found[item.layer.name] = item.moments(weight)
    return found


def _bytes(layer: Layer, patches: bool) -> int:
    shape = layer.shape
    size = shape.slice_width * shape.kernel_size if patches else shape.out_channels // shape.groups
    return 8 * shape.groups * size * size
