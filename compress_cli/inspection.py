"""What is in a file: kind, architecture, tensors with their zeros, cost, plans, and what pruning would rank.

Tensors are counted as the file holds them. A network is built where something says how; when that fails (a factory
that is not there any more) the tensors are still shown, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress_cli.checkpoint import LoadedModel, RawCheckpoint, parse_architecture, parse_inputs, read_tensors
from compress_cli.checkpoint.loading import rebuild, require_stored_consent
from compress_cli.errors import CompressError, UnsupportedModelError
from compress_cli.translate import channel_errors
from pruners.candidates import Candidates, candidates_in_module, candidates_in_state_dict

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_CHUNK = 1 << 22  # elements looked at in one go, so that a large tensor needs no copy of itself


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One named tensor of the file.

    Attributes:
        zeros, nonfinite: elements that are exactly 0; NaN or infinite.
        parameter: False for buffers (batch-norm statistics, index tables).
        same_as: an earlier name of the same memory; its elements count once.
        left_out: why magnitude pruning does not rank it; None when it does.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    zeros: int
    nonfinite: int
    parameter: bool
    same_as: str | None
    left_out: str | None

    @property
    def density(self) -> float:
        """Share of non-zero elements; 0 for a tensor without elements."""
        return 1 - self.zeros / self.elements if self.elements else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**dataclasses.asdict(self), "shape": list(self.shape), "density": self.density}


@dataclass(frozen=True, slots=True)
class Inspection:
    """A checkpoint taken apart.

    Attributes:
        origin: where the architecture comes from: file, flag, recognised, pickle or none.
        complexity: the document of `profilers.complexity`; None where nothing can be traced.
        channels: the document of `pruners.channels.describe`; None unless it was asked for.
    """

    path: str
    kind: str
    bytes: int
    sha256: str
    architecture: Mapping[str, Any] | None
    origin: str
    tensors: tuple[TensorRow, ...]
    inputs: tuple[Mapping[str, Any], ...]
    complexity: Mapping[str, Any] | None
    plans: tuple[Mapping[str, Any], ...]
    metadata: Mapping[str, Any]
    ignored_entries: tuple[str, ...]
    prefix_stripped: str
    key_path: str
    notes: tuple[str, ...]
    channels: Mapping[str, Any] | None = None

    @property
    def own(self) -> tuple[TensorRow, ...]:
        """Tensors without the second names of shared ones."""
        return tuple(row for row in self.tensors if row.same_as is None)

    @property
    def totals(self) -> dict[str, int]:
        """Counts over the file: tensors, params, zeros among them, buffers' elements, ranked weights and zeros."""
        params = [row for row in self.own if row.parameter]
        ranked = [row for row in params if row.left_out is None]
        return {
            "tensors": len(self.tensors),
            "params": sum(row.elements for row in params),
            "zeros": sum(row.zeros for row in params),
            "buffers": sum(row.elements for row in self.own if not row.parameter),
            "nonfinite": sum(row.nonfinite for row in self.own),
            "ranked_tensors": len(ranked),
            "ranked_weights": sum(row.elements for row in ranked),
            "ranked_zeros": sum(row.zeros for row in ranked),
        }

    @property
    def dtypes(self) -> dict[str, int]:
        """Elements of the file by dtype, the most common first."""
        counts: dict[str, int] = {}
        for row in self.own:
            counts[row.dtype] = counts.get(row.dtype, 0) + row.elements
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Names of the tensors that pruning leaves alone, by reason."""
        reasons: dict[str, list[str]] = {}
        for row in self.tensors:
            if row.left_out is not None:
                reasons.setdefault(row.left_out, []).append(row.name)
        return dict(sorted(reasons.items(), key=lambda item: -len(item[1])))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            "schema_version": 1,
            "ok": True,
            "command": "inspect",
            **plain,
            "tensors": [row.to_dict() for row in self.tensors],
            "totals": self.totals,
            "dtypes": self.dtypes,
            "left_out": self.left_out,
        }


def inspect_checkpoint(
    path: str | Path,
    *,
    arch: str | None = None,
    arch_args: Sequence[str] = (),
    input_shape: str | None = None,
    inputs: Sequence[str] = (),
    trust_pickle: bool = False,
    groups: bool = False,
) -> Inspection:
    """Take a checkpoint apart; options are those of `checkpoint.load`.

    groups: also find the channels that can only go together, which takes a trace of the network.

    Raises:
        CompressError: the file cannot be read, `arch` was given and does not fit it, or `groups` cannot be had.
    """
    file = Path(path)
    asked = parse_inputs(input_shape, inputs)
    given = parse_architecture(arch, arch_args) if arch else None
    raw = read_tensors(file, trust_pickle)
    # the module of a pickle is changed in place when it is loaded: count its tensors first
    counted = {name: _count(tensor) for name, tensor in raw.tensors.items()}
    loaded, problem = None, ""
    try:
        if given is None and not trust_pickle:
            require_stored_consent(file, raw)
        loaded = rebuild(file, raw, given=given, arch_args=tuple(arch_args), asked=asked)
    except CompressError as error:
        if given is not None or arch_args:
            raise
        problem = f"{error.message} ({error.fix})" if error.fix else error.message
    complexity, cost_problem = _cost(loaded)
    found = _inspection(file, raw, loaded, counted, complexity, (problem, cost_problem))
    return dataclasses.replace(found, channels=_channels(file, loaded, problem)) if groups else found


def _inspection(
    file: Path,
    raw: RawCheckpoint,
    loaded: LoadedModel | None,
    counted: Mapping[str, tuple[int, int]],
    complexity: Mapping[str, Any] | None,
    problems: tuple[str, ...],
) -> Inspection:
    architecture = loaded.architecture if loaded else None
    stored = raw.document.get("architecture")
    remarks = (*raw.notes, *problems) if loaded is None else (*loaded.notes, loaded.missing_reason, *problems)
    return Inspection(
        path=str(file),
        kind=str(raw.kind),
        bytes=file.stat().st_size,
        sha256=loaded.sha256 if loaded else "",
        architecture=architecture.to_dict() if architecture else stored,
        origin=_origin(raw, loaded),
        tensors=_rows(raw, loaded, counted),
        inputs=tuple(spec.to_dict() for spec in loaded.inputs) if loaded else (),
        complexity=complexity,
        plans=tuple(raw.document.get("plans") or ()),
        metadata=raw.metadata,
        ignored_entries=raw.ignored_entries,
        prefix_stripped=raw.prefix_stripped,
        key_path=raw.key_path,
        notes=tuple(remark for remark in remarks if remark),
    )


def _origin(raw: RawCheckpoint, loaded: LoadedModel | None) -> str:
    stored = raw.document.get("architecture")
    if loaded is None:
        return "file" if stored else "none"
    if loaded.architecture is None:
        return "pickle" if loaded.module is not None else "none"
    if stored and loaded.architecture.to_dict() == stored:
        return "file"
    return "recognised" if any(note.startswith("recognised") for note in loaded.notes) else "flag"


def _rows(
    raw: RawCheckpoint, loaded: LoadedModel | None, counted: Mapping[str, tuple[int, int]]
) -> tuple[TensorRow, ...]:
    module = loaded.module if loaded else None
    verdicts = _verdicts(candidates_in_state_dict(raw.tensors) if module is None else candidates_in_module(module))
    homes = {} if loaded is None or module is None else _homes(module, loaded.tensors)
    first_names: dict[object, str] = {}
    rows = []
    for name, tensor in raw.tensors.items():
        first = first_names.setdefault(_place(tensor, name), name)
        home = homes.get(name, name)
        parameter = _is_parameter(name, tensor) if module is None else home in verdicts
        zeros, nonfinite = counted[name]
        rows.append(
            TensorRow(
                name=name,
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                elements=tensor.numel(),
                zeros=zeros,
                nonfinite=nonfinite,
                parameter=parameter,
                same_as=None if first == name else first,
                left_out=verdicts.get(home, _buffer_reason(name)),
            )
        )
    return tuple(rows)


def _homes(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The network's name of each of the file's tensors: they differ where an older torchvision wrote the file."""
    own = {_place(tensor, name): name for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    return {name: own.get(_place(tensor, name), name) for name, tensor in tensors.items()}


def _buffer_reason(name: str) -> str:
    return "running statistic" if name.endswith(_STATISTICS) else "buffer, not a weight"


def _verdicts(found: Candidates) -> dict[str, str | None]:
    """Why each tensor is left out, by name; None for those that are ranked."""
    ranked = {name: None for item in found.ranked for name in (item.name, *item.aliases)}
    return {**{item.name: item.reason for item in found.left_out}, **ranked}


def _is_parameter(name: str, tensor: Tensor) -> bool:
    return not name.endswith(_STATISTICS) and tensor.is_floating_point()


def _place(tensor: Tensor, name: str) -> object:
    if tensor.numel() == 0:
        return name
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _count(tensor: Tensor) -> tuple[int, int]:
    """Zeros, and values that are NaN or infinite."""
    zeros = nonfinite = 0
    for piece in tensor.detach().reshape(-1).split(_CHUNK) if tensor.numel() else ():
        values = piece.float() if piece.is_floating_point() and piece.element_size() == 1 else piece
        zeros += values.numel() - int(torch.count_nonzero(values))
        if values.is_floating_point() or values.is_complex():
            nonfinite += values.numel() - int(torch.isfinite(values).sum())
    return zeros, nonfinite


def _cost(loaded: LoadedModel | None) -> tuple[dict[str, Any] | None, str]:
    """The network's parameters and MACs from a trace, or the reason why there are none."""
    if loaded is None or loaded.module is None or loaded.example_inputs is None:
        return None, ""
    from profilers.complexity import measure
    from profilers.errors import CountingFailed

    try:
        return measure(loaded.module, loaded.example_inputs).to_dict(), ""
    except CountingFailed as error:
        return None, f"MACs not counted: {error.reason} ({_shapes(loaded)}); --input-shape or --input gives others"


def _channels(file: Path, loaded: LoadedModel | None, problem: str) -> dict[str, Any]:
    """The groups of channels that can be removed, and what is frozen and why.

    Raises:
        UnsupportedModelError: there is no network to trace, or it cannot be traced.
    """
    if loaded is None or loaded.module is None or loaded.example_inputs is None:
        reason = problem if loaded is None else loaded.missing_reason
        raise UnsupportedModelError(
            f"--groups needs the network of {file} and an input for it: {reason}",
            "pass --arch and --input-shape, or leave --groups out",
        )
    from pruners.channels import analyse, describe

    with channel_errors():
        return describe(analyse(loaded.module, loaded.example_inputs))


def _shapes(loaded: LoadedModel) -> str:
    return ", ".join(f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in loaded.inputs)
