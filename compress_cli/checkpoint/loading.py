"""From a file to a `LoadedModel`: read its tensors, find its architecture, rebuild the module, load strictly.

The architecture comes from our own file, from `--arch`, from a trusted pickle, or is recognised by names and shapes.
Without one there is no module, only tensors; `missing_reason` says which flag would change that.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress_cli.checkpoint.architecture import Architecture, build, build_uninitialised, parse_architecture
from compress_cli.checkpoint.consent import require_consent
from compress_cli.checkpoint.inputs import InputSpec, default_inputs, example_inputs, parse_inputs
from compress_cli.checkpoint.matching import load_strictly
from compress_cli.checkpoint.reading import RawCheckpoint, read_tensors
from compress_cli.checkpoint.sniff import Kind
from compress_cli.errors import InputError, UsageError, damaged

PLAN_BUILDERS: dict[str, str | None] = {
    "magnitude": None,
    "alds": "decomposers.alds:restructure_",
    "channels": "pruners.channels:restructure_",
}
"""Method -> "package.module:function" that changes a fresh module's structure as its plan says; None: no change."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checkpoint ready to work on.

    Attributes:
        module: the network in float32 and eval mode; None when nothing says how to build it.
        tensors: by the file's names (prefixes stripped); with a module, its own state_dict tensors (edits are shared).
        dtypes: dtype of each tensor in the file, to write weights back as they came (`saving.as_stored`).
        dtype: the file's most common float dtype, such as `float16`.
        inputs: what `example_inputs` were made from; names, shapes without the batch, dtypes.
        example_inputs: arguments for `module(*example_inputs)`, batch of 1; None when no shape is known.
        plans: what was already done to the model, oldest first.
        ignored_entries: entries of the file that were not used.
        missing_reason: why there is no module or no example input, and which flag would give one; else empty.
    """

    path: Path
    kind: Kind
    sha256: str
    module: nn.Module | None
    tensors: dict[str, Tensor]
    dtypes: Mapping[str, torch.dtype]
    dtype: str
    architecture: Architecture | None
    inputs: tuple[InputSpec, ...]
    example_inputs: tuple[Any, ...] | None
    input_names: tuple[str, ...]
    output_names: tuple[str, ...] | None
    metadata: dict[str, Any]
    plans: tuple[dict[str, Any], ...]
    ignored_entries: tuple[str, ...]
    notes: tuple[str, ...]
    missing_reason: str

    def forget(self) -> None:
        """Let go of all weights: shapes and dtypes stay, values do not (a network of 2.5 GB is not held twice)."""
        if self.module is not None:
            self.module.to("meta")
        self.tensors.clear()


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    arch_args: Sequence[str] = (),
    input_shape: str | None = None,
    inputs: Sequence[str] = (),
    trust_pickle: bool = False,
    confirmed: Architecture | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Read a checkpoint and rebuild its network where that is possible.

    confirmed: an architecture that may be built when the file stores it, although it is not a known builder
        (`consent`); `arch` and `trust_pickle` confirm as well.

    Raises:
        UsageError: a malformed flag.
        InputError: the file cannot be read, or the architecture does not fit its weights.
        UnsupportedModelError: a kind of file or tensor that cannot be compressed.
    """
    asked = parse_inputs(input_shape, inputs)
    given = parse_architecture(arch, arch_args) if arch else None
    raw = read_tensors(path, trust_pickle)
    refuse_nan(Path(path), raw.tensors)
    if given is None and not trust_pickle:
        require_stored_consent(Path(path), raw, confirmed)
    return rebuild(Path(path), raw, given=given, arch_args=tuple(arch_args), asked=asked, seed=seed)


def refuse_nan(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check biases, norms and statistics, which no ranking ever looks at; larger tensors are checked when ranked.

    Infinity is left alone: masks and the ranges of observers hold it on purpose.

    Raises:
        InputError: a tensor of fewer than two dimensions holds NaN.
    """
    small = ((name, tensor) for name, tensor in tensors.items() if tensor.dim() < 2 and tensor.dtype in _FLOATS)
    found = [name for name, tensor in small if bool(tensor.isnan().any())]
    if found:
        raise damaged(file, found, "NaN")


def require_stored_consent(file: Path, raw: RawCheckpoint, confirmed: Architecture | None = None) -> None:
    """Check that the architecture stored in a file, if any, may be built: to be asked before `rebuild`.

    Raises:
        InputError: it is code of the file's choice (`consent`), and not the confirmed one.
    """
    stored = raw.document.get("architecture")
    if not stored:
        return
    same = confirmed is not None and json.dumps(confirmed.to_dict()) == json.dumps(stored)
    if not same:
        require_consent(Architecture.from_dict(stored), file)


def rebuild(
    file: Path,
    raw: RawCheckpoint,
    *,
    given: Architecture | None = None,
    arch_args: tuple[str, ...] = (),
    asked: tuple[InputSpec, ...] = (),
    seed: int = 0,
) -> LoadedModel:
    """The second half of `load`: from a file's tensors to its network, where something says how to build it.

    A stored architecture is built as it is: ask `require_stored_consent` first.

    Raises:
        UsageError, InputError: as `load`.
    """
    architecture, notes, reason = _architecture(raw, given, arch_args)
    tensors = raw.tensors
    plans = tuple(dict(plan) for plan in raw.document.get("plans") or ())
    module = raw.module if given is None else None
    if module is None and architecture is not None:
        module = _new_module(architecture, file.parent, plans)
        tensors, more = load_strictly(module, raw, architecture, file)
        notes = (*notes, *more, *_narrowed(raw))
    elif module is not None:
        module = module.float().eval()
        tensors = module.state_dict()
    specs = asked or _known_inputs(raw, architecture)
    if module is not None and not specs:
        reason = "no input shape is known: pass --input-shape CxHxW (or --input NAME=SHAPE:dtype)"
    return LoadedModel(
        path=file,
        kind=raw.kind,
        sha256=_sha256(file),
        module=module,
        tensors=tensors,
        dtypes={name: tensor.dtype for name, tensor in raw.tensors.items()},
        dtype=_main_dtype(raw.tensors),
        architecture=architecture,
        inputs=specs,
        example_inputs=example_inputs(specs, seed=seed) if specs and module is not None else None,
        input_names=tuple(spec.name for spec in specs),
        output_names=_output_names(module, architecture),
        metadata=raw.metadata,
        plans=plans,
        ignored_entries=raw.ignored_entries,
        notes=(*raw.notes, *notes),
        missing_reason=reason,
    )


def _narrowed(raw: RawCheckpoint) -> tuple[str, ...]:
    wide = sum(tensor.dtype == torch.float64 for tensor in raw.tensors.values())
    return (f"{wide} float64 tensors are computed in float32: what is saved has its seven digits",) if wide else ()


def apply_plan_(module: nn.Module, plan: Mapping[str, Any]) -> None:
    """Give a freshly built module the structure that a recorded plan left it with; weights are loaded afterwards.

    Raises:
        InputError: the plan's method is unknown here.
    """
    method = plan.get("method")
    if method not in PLAN_BUILDERS:
        raise InputError(
            f"the file records a plan of method {method!r}, which is unknown here: it was made by a newer version",
            "install a newer compress-cli",
        )
    target = PLAN_BUILDERS[method]
    if target is not None:
        home, _, name = target.partition(":")
        getattr(importlib.import_module(home), name)(module, plan)


def _architecture(
    raw: RawCheckpoint, given: Architecture | None, arch_args: tuple[str, ...]
) -> tuple[Architecture | None, tuple[str, ...], str]:
    """The architecture, remarks on how it was found, and the reason when there is none."""
    if given is not None:
        return given, (), ""
    stored = raw.document.get("architecture")
    if stored:
        return Architecture.from_dict(stored), (), ""
    if arch_args:
        raise UsageError("--arch-args without --arch", "add --arch, for example --arch torchvision:resnet18")
    if raw.module is not None:
        return None, ("the network is the one pickled in the file",), ""
    from compress_cli.checkpoint.recognition import recognise

    found = recognise(raw.tensors)
    if found.architecture is None:
        return None, (), f"{len(raw.tensors)} tensors but no network definition: {found.advice}"
    return found.architecture, found.notes, ""


def _new_module(architecture: Architecture, folder: Path, plans: Sequence[Mapping[str, Any]]) -> nn.Module:
    # a plan may compute with the fresh weights' values, so only a plain rebuild may skip them
    plain = all(PLAN_BUILDERS.get(str(plan.get("method")), "") is None for plan in plans)
    module = (build_uninitialised if plain else build)(architecture, search_from=folder)
    for plan in plans:
        apply_plan_(module, plan)
    return module


def _known_inputs(raw: RawCheckpoint, architecture: Architecture | None) -> tuple[InputSpec, ...]:
    stored = raw.document.get("inputs") or ()
    if stored:
        return tuple(InputSpec.from_dict(spec) for spec in stored)
    return default_inputs(architecture) if architecture else ()


def _output_names(module: nn.Module | None, architecture: Architecture | None) -> tuple[str, ...] | None:
    """The names of torchvision's segmentation outputs; for others the exporter finds its own."""
    if module is None or architecture is None or not architecture.reference.startswith("torchvision:"):
        return None
    if ".segmentation." not in type(module).__module__:
        return None
    return ("out", "aux") if getattr(module, "aux_classifier", None) is not None else ("out",)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _main_dtype(tensors: Mapping[str, Tensor]) -> str:
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    most = max(counts, key=lambda dtype: counts[dtype], default=torch.float32)
    return str(most).removeprefix("torch.")
