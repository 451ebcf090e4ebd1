"""Load weights into a module strictly, and say in a few lines how they differ when they do not fit.

The module's own `load_state_dict` decides (its hooks may rename old keys); only absent `num_batches_tracked` counters
are forgiven, which checkpoints from before PyTorch 0.4.1 and frozen batch norms lack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.nn.parameter import is_lazy

from compress_cli.checkpoint.architecture import Architecture
from compress_cli.checkpoint.names import modern_names, versions_of, with_versions
from compress_cli.checkpoint.reading import RawCheckpoint
from compress_cli.errors import InputError

COUNTER = "num_batches_tracked"
_SHOWN = 5


def load_strictly(
    module: nn.Module, raw: RawCheckpoint, architecture: Architecture, file: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fill the module (float32, eval) from the file's tensors; returns its tensors by the file's names, and remarks.

    A stripped prefix is put back when the module has it itself.

    Raises:
        InputError: names or shapes differ; the message holds a short diff, the fix a guess at the cause.
    """
    module.float().eval()
    tensors = _with_own_prefix(module, raw)
    home = _module_names(module, tensors, architecture)
    named = with_versions(((home[name], tensor) for name, tensor in tensors.items()), versions_of(tensors))
    wrong = _wrong_shapes(module, named)
    missing, unexpected, refusal = _load(module, named, wrong)
    if missing or unexpected or wrong:
        raise _mismatch(file, architecture, named, (missing, unexpected, wrong))
    if refusal:
        raise InputError(
            f"{architecture} refuses the weights of {file}, whose names and shapes fit: {refusal}",
            "load them with the code that wrote them and save the state dict again",
        )
    state = module.state_dict()
    kept = ((name, state[home[name]]) for name in tensors if home[name] in state)
    absent = sum(name.endswith(COUNTER) and name not in named for name in state)
    notes = (f"{absent} {COUNTER} counters are not in the file",) if absent else ()
    return with_versions(kept, versions_of(tensors) or versions_of(state)), notes


def _module_names(module: nn.Module, tensors: Mapping[str, Tensor], architecture: Architecture) -> dict[str, str]:
    """The module's name of each tensor: torchvision's older names are translated, all others stay."""
    if not architecture.reference.startswith("torchvision:"):
        return {name: name for name in tensors}
    known = module.state_dict().keys()
    return {name: name if name in known else today for name, today in modern_names(tensors.keys()).items()}


def _with_own_prefix(module: nn.Module, raw: RawCheckpoint) -> dict[str, Tensor]:
    if not raw.prefix_stripped:
        return raw.tensors
    names = set(module.state_dict())
    prefix = raw.prefix_stripped
    while prefix:
        if {prefix + name for name in raw.tensors} <= names:
            # the versions' layer names lost the prefix as well; without them loading code assumes current layers
            return with_versions(((prefix + name, tensor) for name, tensor in raw.tensors.items()), None)
        prefix = prefix[prefix.index(".") + 1 :]
    return raw.tensors


def _wrong_shapes(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Shapes in the file and in the network, by name, where they differ."""
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    return {
        name: (tuple(tensor.shape), tuple(state[name].shape))
        for name, tensor in tensors.items()
        if name in state and not is_lazy(state[name]) and tensor.shape != state[name].shape
    }


def _load(
    module: nn.Module, tensors: Mapping[str, Tensor], wrong: Mapping[str, object]
) -> tuple[list[str], list[str], str]:
    """Names missing from and unexpected by the module, after its loading hooks had their say, and their objection."""
    fitting = [(name, tensor) for name, tensor in tensors.items() if name not in wrong]
    try:
        result = _load_state(module, fitting, versions_of(tensors))
    except RuntimeError as error:  # a hook or a lazy layer objects: comparing names may say more
        state, words = module.state_dict(), " ".join(str(error).split())
        missing = [name for name in state if name not in tensors]
        return missing, [name for name in tensors if name not in state], words[:300] or type(error).__name__
    missing = [name for name in result.missing_keys if not name.endswith(COUNTER) and name not in wrong]
    return missing, list(result.unexpected_keys), ""


def _load_state(
    module: nn.Module, tensors: Sequence[tuple[str, Tensor]], versions: Mapping[str, object] | None
) -> _IncompatibleKeys:
    result: _IncompatibleKeys
    try:
        result = module.load_state_dict(with_versions(tensors, versions), strict=False)
    except ValueError:  # MNASNet insists on a version; a file without any is taken for a current one
        current = versions_of(module.state_dict())
        result = module.load_state_dict(with_versions(tensors, current), strict=False)
    return result


def _mismatch(
    file: Path,
    architecture: Architecture,
    tensors: Mapping[str, Tensor],
    difference: tuple[list[str], list[str], Mapping[str, tuple[tuple[int, ...], ...]]],
) -> InputError:
    missing, unexpected, wrong = difference
    lines = []
    if missing:
        lines.append(f"missing from the file {len(missing)}: {_some(missing)}")
    if unexpected:
        lines.append(f"not in the network {len(unexpected)}: {_some(unexpected)}")
    if wrong:
        shapes = [
            f"{name} {_shape(theirs)} in the file, {_shape(ours)} in the network"
            for name, (theirs, ours) in wrong.items()
        ]
        lines.append(f"wrong shapes {len(wrong)}: {_some(shapes, '; ')}")
    head = f"the weights of {file} ({len(tensors)} tensors) do not fit {architecture}"
    return InputError("\n  ".join([head, *lines]), _hint(architecture, difference))


def _hint(
    architecture: Architecture,
    difference: tuple[list[str], list[str], Mapping[str, tuple[tuple[int, ...], ...]]],
) -> str:
    missing, unexpected, wrong = difference
    classes = _class_count(missing, unexpected, wrong)
    if classes is not None:
        return f"only the last layer differs: add --arch-args num_classes={classes} (or what your factory calls it)"
    prefix = _common_prefix(unexpected)
    if prefix and any(name.removeprefix(prefix) in set(missing) for name in unexpected):
        return f"the file's names begin with {prefix!r}: pass a factory whose network has it, or re-save without it"
    outer = _common_prefix(missing)
    if outer and any(name.removeprefix(outer) in set(unexpected) for name in missing):
        return f"the network's names begin with {outer!r} and the file's do not: pass the inner network's factory"
    return (
        "check that --arch and --arch-args are those of the trained network (compress inspect FILE lists its tensors)"
    )


def _class_count(
    missing: Sequence[str], unexpected: Sequence[str], wrong: Mapping[str, tuple[tuple[int, ...], ...]]
) -> int | None:
    """The file's number of classes when nothing but the first size of a last layer's tensors differs."""
    if missing or unexpected or not 1 <= len(wrong) <= 4:
        return None
    if any(len(theirs) != len(ours) or not theirs or theirs[1:] != ours[1:] for theirs, ours in wrong.values()):
        return None
    sizes = {theirs[0] for theirs, _ in wrong.values()}
    layers = {name.rpartition(".")[0] for name in wrong}
    return sizes.pop() if len(sizes) == 1 and len(layers) <= 2 else None


def _common_prefix(names: Sequence[str]) -> str:
    first = {name.partition(".")[0] for name in names}
    return f"{first.pop()}." if len(first) == 1 and all("." in name for name in names) else ""


def _some(items: Sequence[str], separator: str = ", ") -> str:
    more = f"{separator}... and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
