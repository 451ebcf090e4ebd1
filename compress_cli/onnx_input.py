"""Work on an ONNX file that has no PyTorch network behind it: magnitude pruning, and image inputs for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from compress_cli.errors import InputError

if TYPE_CHECKING:
    from pruners.magnitude import MagnitudeOptions, MagnitudePlan


@dataclass(frozen=True, slots=True)
class OnnxPruning:
    """What was zeroed in an ONNX file, counted in the file that was written.

    Attributes:
        asked: zeros that the sparsity stands for.
        zeros, weights: over all ranked tensors.
        layers: name -> (weights, zeros before, zeros after).
        skipped: tensors that were not ranked, and why.
    """

    plan: MagnitudePlan
    asked: int
    zeros: int
    weights: int
    layers: Mapping[str, tuple[int, int, int]]
    skipped: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "plan"}
        return {**own, "plan": self.plan.to_dict(), "skipped": [list(row) for row in self.skipped]}


def prune_onnx(source: Path, target: Path, options: MagnitudeOptions) -> OnnxPruning:
    """Zero the smallest weights of an ONNX file: exactly as many as asked, counted in the file written to `target`.

    Ranked are the float tensors that feed a convolution or product. A packed file is unpacked first; the result is
    dense (pack it with `exporters.packing.pack`).

    Args:
        source: any ONNX file.
        target: the file to write.
        options: sparsity, scope, score, floor, and patterns of tensor names.

    Raises:
        BadOnnxFile: the file cannot be read.
        PruningError, ValueError: as `pruners.magnitude` raises them; translate with `translate.pruning_errors`.
    """
    import torch
    from onnx import numpy_helper

    from exporters import files
    from exporters.unpacking import unpack
    from exporters.weights import constants_to_initializers, weights
    from pruners import magnitude

    unpack(source, target)
    model = files.read(target)
    constants_to_initializers(model.graph)
    found, left = weights(model, least_bytes=1)
    tensors = {w.name: torch.from_numpy(w.array.copy()) for w in found if w.product and w.array.dtype.kind == "f"}
    ranked = magnitude.candidates_in_state_dict(tensors, include=["*"] if tensors else [])
    plan = magnitude.plan(ranked, options)
    before = magnitude.count_zeros({cut.name: tensors[cut.name] for cut in plan.cuts})
    magnitude.apply_(tensors, plan)
    changed = {cut.name for cut in plan.cuts}
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(tensors[tensor.name].numpy(), tensor.name))
    files.write(model, target)
    files.check(target)
    written = {tensor.name: tensor for tensor in files.read(target).graph.initializer}
    layers = {}
    for cut in plan.cuts:
        array = numpy_helper.to_array(written[cut.name])
        layers[cut.name] = (array.size, before[cut.name], int(np.count_nonzero(array == 0)))
    left_out = [(item.name, item.reason) for item in left] + [(item.name, item.reason) for item in plan.left_out]
    others = [(w.name, "it feeds no convolution or product") for w in found if not w.product]
    return OnnxPruning(
        plan=plan,
        asked=plan.zeros_asked,
        zeros=sum(after for _, _, after in layers.values()),
        weights=sum(size for size, _, _ in layers.values()),
        layers=layers,
        skipped=(*others, *left_out),
    )


def image_feeds(
    path: Path,
    folder: str,
    *,
    samples: int,
    batch: int,
    loaded: Any = None,
    seed: int = 0,
    preprocess: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    resize: int | None = None,
) -> list[dict[str, np.ndarray]]:
    """Images of `folder` as inputs of the ONNX file `path`, `batch` at a time (or as many as its fixed batch).

    Args:
        loaded: the checkpoint that the file came from, for the preprocessing of its architecture.

    Raises:
        InputError: no images, or the file does not take images.
        UsageError: a malformed preprocessing flag.
    """
    import torch

    from compress_cli.checkpoint.inputs import InputSpec
    from compress_cli.data.folders import any_folder
    from compress_cli.data.preprocess import choose_preprocess
    from compress_cli.data.sources import images_split
    from compress_cli.data.subsets import choose
    from exporters.feeds import open_session

    inputs = open_session(path).get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise InputError(
            f"--calib gives images, but the network has {len(inputs)} inputs of the shapes "
            f"{[list(value.shape) for value in inputs]}",
            "leave --calib out: random inputs are made instead",
        )
    name, shape = inputs[0].name, inputs[0].shape
    if loaded is None or not loaded.inputs:
        sizes = [size if isinstance(size, int) else 224 for size in shape[1:]]
        loaded = SimpleNamespace(inputs=(InputSpec(name, tuple(sizes)),), architecture=None)
    settings: Any = SimpleNamespace(preprocess=preprocess, mean=mean, std=std, resize=resize)
    images = images_split(any_folder(folder), choose_preprocess(settings, loaded)[0], training=False)
    size = shape[0] if isinstance(shape[0], int) else batch
    places = choose(min(samples, len(images)), len(images), images.labels, seed)
    pieces = [places[start : start + size] for start in range(0, len(places) - size + 1, size)]
    if not pieces:
        raise InputError(f"--calib {folder} holds {len(places)} images, fewer than one batch of {size}", "add images")
    kind = np.float16 if "float16" in inputs[0].type else np.float32
    feeds = images.batches(pieces, device=torch.device("cpu"))
    return [{name: feed.inputs[0].numpy().astype(kind)} for feed in feeds]
