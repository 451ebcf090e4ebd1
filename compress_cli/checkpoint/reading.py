"""Read the tensors of any checkpoint without running code from it (specs/checkpoints.md).

torch.save files go through `torch.load(weights_only=True)`, memory-mapped where the format allows it; safetensors
through its library. Pickled code runs only with `trust_pickle`. What cannot be read is refused with the way out.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress_cli.checkpoint import pickles
from compress_cli.checkpoint.architecture import Architecture
from compress_cli.checkpoint.inputs import InputSpec
from compress_cli.checkpoint.names import versions_of, with_versions, without_prefix
from compress_cli.checkpoint.plain_modules import library_layers, tampered_layer
from compress_cli.checkpoint.sniff import Kind, sniff
from compress_cli.checkpoint.unnest import find_weights, strip_prefixes
from compress_cli.errors import InputError, UnsupportedModelError

FORMAT_VERSION = 1
_RESAVE = (
    "re-save the weights with the code that made it: torch.save(model.state_dict(), 'weights.pt'), then pass --arch"
)


@dataclass(frozen=True, slots=True)
class RawCheckpoint:
    """Tensors of a file as they are in it, and what else was there.

    Attributes:
        tensors: by name, after unnesting and prefix stripping, in the file's dtypes; storages shared as in the file;
            like a module's state dict it carries the layers' versions (`names.versions_of`) where the file has them.
        module: the unpickled module (only with trust, or when all its layers are torch's and torchvision's own).
        ignored_entries: names of entries beside the weights that were not used (optimizer, args, ...).
        metadata: scalars beside the weights (epoch, best accuracy, ...).
        key_path: where the weights were, such as `state_dict`; empty for a bare state dict.
        prefix_stripped: such as `module.`; empty when none was shared by all names.
        document: for our own files everything but the weights (architecture, plans, inputs, report), else empty.
    """

    kind: Kind
    tensors: dict[str, Tensor]
    module: nn.Module | None = None
    ignored_entries: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    key_path: str = ""
    prefix_stripped: str = ""
    notes: tuple[str, ...] = ()
    document: dict[str, Any] = field(default_factory=dict)


def read_tensors(path: str | Path, trust_pickle: bool = False) -> RawCheckpoint:
    """Read a checkpoint's tensors; code in the file runs only with `trust_pickle`.

    Raises:
        InputError: the file cannot be read, is damaged, or holds no weights; or its code would have to run.
        UnsupportedModelError: TorchScript, a .pt2 program, an ONNX model, quantized or sparse tensors.
    """
    file = Path(path)
    kind = sniff(file)
    if kind is Kind.SAFETENSORS:
        return _from_safetensors(file)
    _refuse_kind(file, kind)
    payload, notes = _load(file, kind, trust_pickle)
    if isinstance(payload, Mapping) and "format_version" in payload and "compress_version" in payload:
        return _from_ours(file, payload)
    return _from_payload(file, kind, payload, notes)


def _refuse_kind(file: Path, kind: Kind) -> None:
    if kind is Kind.TORCHSCRIPT:
        raise UnsupportedModelError(
            f"{file} is a TorchScript archive: its network is compiled and cannot be changed safely",
            "save its weights: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt'), then pass "
            "weights.pt with --arch",
        )
    if kind is Kind.EXPORTED_PROGRAM:
        raise UnsupportedModelError(
            f"{file} is a torch.export program (.pt2): its network is a fixed graph and cannot be re-built",
            "save its weights: torch.save(dict(torch.export.load(FILE).state_dict), 'weights.pt'), then pass "
            "weights.pt with --arch",
        )
    if kind is Kind.ONNX:
        raise UnsupportedModelError(
            f"{file} is an ONNX model: this version reads PyTorch weights only",
            "pass the PyTorch checkpoint that it was exported from",
        )
    if kind is Kind.EMPTY:
        raise InputError(f"{file} is a torch.save file without any tensors", _RESAVE)
    if kind is Kind.UNKNOWN:
        with file.open("rb") as stream:
            start = stream.read(8).hex(" ")
        raise InputError(
            f"{file} is no checkpoint that is known here (its first bytes are {start})",
            "pass a file written by torch.save or safetensors; if it was one, copy or download it again",
        )


def _damaged(file: Path, error: BaseException) -> InputError:
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return InputError(
        f"{file} is damaged and cannot be read: {reason}",
        "copy or download it again and compare the size with the original",
    )


def _from_safetensors(file: Path) -> RawCheckpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as archive:
            tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 (not a dict)
            metadata = dict(archive.metadata() or {})
    except (SafetensorError, OSError, RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise _damaged(file, error) from error
    if not tensors:
        raise InputError(f"{file} is a safetensors file without any tensors", _RESAVE)
    document = _checked(file, _twin_document(metadata.pop("compress", "{}")))
    metadata.pop("format", None)
    return _finish(file, RawCheckpoint(Kind.SAFETENSORS, tensors, metadata=metadata, document=document))


def _twin_document(text: str) -> dict[str, Any]:
    """What `saving` stored in the header of a safetensors twin: architecture, plans and inputs as one JSON text."""
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _checked(file: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The same document when its parts have the form that `saving` gives them.

    Raises:
        InputError: a part is damaged.
    """
    try:
        for part in ("metadata", "report"):
            dict(document.get(part) or {})
        for plan in document.get("plans") or ():
            dict(plan)
        for spec in document.get("inputs") or ():
            InputSpec.from_dict(spec)
        if document.get("architecture"):
            Architecture.from_dict(document["architecture"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file} was written by compress, but its description of the network is damaged: {error!r}",
            "write it again",
        ) from error
    return document


def _from_ours(file: Path, payload: Mapping[str, Any]) -> RawCheckpoint:
    version = payload["format_version"]
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InputError(
            f"{file} has format version {version!r}; this compress reads up to {FORMAT_VERSION}",
            "install a newer compress-cli",
        )
    tensors = payload.get("state_dict")
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f"{file} was written by compress, but its state_dict is damaged", "write it again")
    document = _checked(file, {name: value for name, value in payload.items() if name != "state_dict"})
    kept = with_versions(tensors.items(), versions_of(tensors))
    raw = RawCheckpoint(Kind.OURS, kept, metadata=dict(document.get("metadata") or {}), document=document)
    _refuse_tensors(file, raw.tensors)
    return raw


def _from_payload(file: Path, kind: Kind, payload: Any, notes: tuple[str, ...]) -> RawCheckpoint:
    found = find_weights(payload, file.name)
    notes = (*notes, *found.notes)
    if isinstance(found.weights, nn.Module):
        module = _unwrapped(found.weights)
        raw = RawCheckpoint(
            Kind.PICKLED_MODULE, module.state_dict(), module, found.ignored, found.metadata, found.key_path
        )
        _refuse_tensors(file, raw.tensors)
        return replace(raw, notes=notes)
    named = [(name, value) for name, value in found.weights.items() if isinstance(value, Tensor)]
    tensors = with_versions(named, versions_of(found.weights))
    odd = next((name for name in found.weights if not isinstance(name, str)), None)
    if odd is not None:
        raise InputError(f"{file} names a tensor {odd!r} ({type(odd).__name__}); names must be text", _RESAVE)
    beside = tuple(name for name in found.weights if name not in tensors)
    exact = Kind.TRAINING if found.key_path else Kind.LEGACY if kind is Kind.LEGACY else Kind.STATE_DICT
    raw = RawCheckpoint(exact, tensors, None, (*found.ignored, *beside), found.metadata, found.key_path, notes=notes)
    return _finish(file, raw)


def _finish(file: Path, raw: RawCheckpoint) -> RawCheckpoint:
    stripped, prefix, dropped = strip_prefixes(raw.tensors)
    tensors = with_versions(stripped.items(), without_prefix(versions_of(raw.tensors), prefix))
    _refuse_tensors(file, tensors)
    return replace(raw, tensors=tensors, prefix_stripped=prefix, ignored_entries=(*raw.ignored_entries, *dropped))


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel or torch.compile wrappers."""
    wrappers = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
    while (inner := getattr(module, wrappers.get(type(module).__name__, ""), None)) is not None:
        module = inner
    return module


def _refuse_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_quantized:
            raise UnsupportedModelError(
                f"{file}: tensor {name} is quantized ({tensor.dtype}); pruning needs float weights",
                "compress the float model first and quantize the result",
            )
        if tensor.layout is not torch.strided:
            raise UnsupportedModelError(
                f"{file}: tensor {name} is stored as {tensor.layout}, not as a dense tensor",
                "re-save it dense: torch.save({k: v.to_dense() for k, v in torch.load(FILE).items()}, 'weights.pt')",
            )
        if tensor.is_meta:
            raise InputError(f"{file}: tensor {name} is on the meta device and holds no values", _RESAVE)


def _load(file: Path, kind: Kind, trust: bool) -> tuple[Any, tuple[str, ...]]:
    """Unpickle safely; with `trust`, fall back to running the file's code when it must run."""
    options: dict[str, Any] = {"map_location": "cpu", "mmap": True if kind is not Kind.LEGACY else None}
    try:
        with _quiet(), pickles.inert_globals() as seen:
            payload = torch.load(file, weights_only=True, **options)
        return payload, pickles.inert_notes(seen)
    except pickle.UnpicklingError as error:
        blocked = pickles.blocked_globals(file) or _named_in(error)
        if not blocked:
            raise _damaged(file, error) from error
    except Exception as error:  # the bytes are a stranger's: whatever the unpickler stumbles over is a damaged file
        raise _damaged(file, error) from error
    payload = _load_library_module(file, options, blocked)
    if payload is not None:
        return payload, ()
    if not trust:
        raise pickles.blocked_error(file, blocked)
    return _load_trusted(file, options), ("code pickled in the file was run (--trust-pickle)",)


def _load_library_module(file: Path, options: dict[str, Any], blocked: list[str]) -> Any:
    """Unpickle a network of torch's and torchvision's own layers, still without running code from the file.

    None when other code would have to run.

    Raises:
        InputError: a layer was given hooks or methods of the file's choice.
    """
    layers: list[Any] | None = library_layers(blocked)
    if layers is None:
        return None
    try:
        with _quiet(), torch.serialization.safe_globals(layers), pickles.inert_globals():
            payload = torch.load(file, weights_only=True, **options)
    except pickle.UnpicklingError:  # the legacy format stores modules in a way of its own
        return None
    except Exception as error:
        raise _damaged(file, error) from error
    tampered = next((found for module in _modules_in(payload) if (found := tampered_layer(module))), None)
    if tampered is not None:
        raise InputError(
            f"{file} holds a pickled network whose layer {tampered!r} carries hooks or replaced methods",
            "re-save the weights alone where they were made: torch.save(model.state_dict(), 'weights.pt')",
        )
    return payload


def _modules_in(payload: Any) -> Iterator[nn.Module]:
    """Every module in nested dicts, lists and tuples."""
    if isinstance(payload, nn.Module):
        yield payload
    inside = payload.values() if isinstance(payload, Mapping) else payload if isinstance(payload, (list, tuple)) else ()
    for value in inside:
        yield from _modules_in(value)


def _named_in(error: Exception) -> list[str]:
    match = re.search(r"GLOBAL (\S+)", str(error))
    return [match.group(1)] if match else []


def _load_trusted(file: Path, options: dict[str, Any]) -> Any:
    """Unpickle with the file's own classes, found in the current folder or beside the checkpoint."""
    for folder in (str(Path.cwd()), str(file.resolve().parent)):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        with _quiet():
            return torch.load(file, weights_only=False, **options)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{file} needs code that cannot be found: {error}",
            "run compress in the folder of the training code (or add it to PYTHONPATH); a class of the training "
            "script itself (__main__) cannot be found: " + _RESAVE,
        ) from error
    except Exception as error:
        raise _damaged(file, error) from error


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
