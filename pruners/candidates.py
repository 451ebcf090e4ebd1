"""Which tensors magnitude pruning ranks: every weight that feeds a convolution or a matrix product.

With a module the types decide; with a bare state dict the names and shapes do, and both agree wherever a model uses
the usual layers. A tensor reachable under two names counts once. All that is not ranked is listed with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pruners.keys import KINDS
from pruners.patterns import check_patterns, matches

_ATTENTION = frozenset({"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"})
_RECURRENT = re.compile(r"weight_(ih|hh|hr)(_l\d+)?(_reverse)?$")
_REPARAMETRISED = re.compile(r"(weight_(orig|g|v|mask|u)|parametrizations\..*\.original\d*)$")
_STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})
_EMBEDDING = re.compile(r"(^|_)(emb|embed|embedder|embeds|embedding|embeddings|wte|wpe|attention_bias)(_|$|\d)", re.I)
_EMBEDDED = re.compile(r"(embed_tokens|tok_embed|pos_?embed|position|token_type|cls_token|class_token)", re.I)
_NORM = re.compile(r"(^|_)(bn|ln|norm|layernorm|batchnorm|groupnorm)(_|$|\d)", re.I)
_MATMUL = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
# layers of well-known libraries that multiply by their weight without deriving from a torch layer
_OTHER_MATMUL = frozenset({"torchvision.ops.deform_conv.DeformConv2d", "transformers.pytorch_utils.Conv1D"})

EMBEDDING = "embedding"
NORM = "normalisation"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A tensor left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A weight to rank: its first name, the tensor, and the other names that lead to the same memory."""

    name: str
    tensor: Tensor = field(repr=False, compare=False)
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidates:
    """The weights to rank, in model order, and the tensors left out."""

    ranked: tuple[Candidate, ...]
    left_out: tuple[Skipped, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Ranked tensors by name."""
        return {item.name: item.tensor for item in self.ranked}

    @property
    def weights(self) -> int:
        """Number of ranked weights N."""
        return sum(item.tensor.numel() for item in self.ranked)


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    tensor: Tensor
    reason: str | None


def candidates_in_module(model: nn.Module, include: Sequence[str] = ()) -> Candidates:
    """Find the weights to rank among the parameters of a module, in `named_parameters()` order.

    Args:
        model: any module; meta tensors are fine.
        include: patterns of names to rank although their kind is normally left out (an embedding, a free parameter).

    Raises:
        NoMatch: a pattern of `include` matches nothing.
    """
    modules = dict(model.named_modules(remove_duplicate=False))

    def reason(name: str, tensor: Tensor) -> str | None:
        owner, _, leaf = name.rpartition(".")
        return _reason_by_type(modules.get(owner, model), leaf)

    return _collect(model.named_parameters(remove_duplicate=False), reason, include)


def candidates_in_state_dict(tensors: Mapping[str, object], include: Sequence[str] = ()) -> Candidates:
    """Find the weights to rank in a state dict of unknown architecture, in its own order.

    Args:
        tensors: name -> tensor; entries that are no tensors are left out.
        include: patterns of names to rank although their kind is normally left out.

    Raises:
        NoMatch: a pattern of `include` matches nothing.
    """
    found = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    collected = _collect(found.items(), lambda name, tensor: _reason_by_name(name, tensor, found), include)
    others = (Skipped(name, "not a tensor") for name in tensors if name not in found)
    return Candidates(collected.ranked, (*collected.left_out, *others))


def narrow(candidates: Candidates, only: Sequence[str], ignore: Sequence[str]) -> Candidates:
    """Apply the user's patterns; what they exclude moves to `left_out`.

    Raises:
        NoMatch: a pattern matches nothing (`only` must match a ranked weight).
    """
    ranked_names = [name for item in candidates.ranked for name in (item.name, *item.aliases)]
    others = [item.name for item in candidates.left_out]
    check_patterns(only, ranked_names, others)
    check_patterns(ignore, [*ranked_names, *others])
    kept, dropped = [], []
    for item in candidates.ranked:
        names = (item.name, *item.aliases)
        if any(matches(pattern, name) for pattern in ignore for name in names):
            dropped.append(Skipped(item.name, "ignored by a pattern"))
        elif only and not any(matches(pattern, name) for pattern in only for name in names):
            dropped.append(Skipped(item.name, "not selected by a pattern"))
        else:
            kept.append(item)
    return Candidates(tuple(kept), (*candidates.left_out, *dropped))


def _collect(
    named: Iterable[tuple[str, Tensor]], reason: Callable[[str, Tensor], str | None], include: Sequence[str]
) -> Candidates:
    """Decide every tensor, merge the names of the same memory, and refuse overlapping memory."""
    entries = [_decide(name, tensor, reason, include) for name, tensor in named]
    check_patterns(include, [entry.name for entry in entries])
    ranked: list[Candidate] = []
    left_out: list[Skipped] = []
    for group in _same_memory(entries):
        names = tuple(entry.name for entry in group)
        why = _verdict(group)
        if why is None:
            ranked.append(Candidate(names[0], group[0].tensor, names[1:]))
        else:
            left_out += [Skipped(name, why) for name in names]
    overlapping = _overlaps(ranked)
    left_out += [Skipped(name, f"shares part of its memory with {other}") for name, other in overlapping.items()]
    return Candidates(tuple(item for item in ranked if item.name not in overlapping), tuple(left_out))


def _decide(name: str, tensor: Tensor, reason: Callable[[str, Tensor], str | None], include: Sequence[str]) -> _Entry:
    why = _unfit(name, tensor)
    if why is None and not any(matches(pattern, name) for pattern in include):
        why = reason(name, tensor)
    return _Entry(name, tensor, why)


def _verdict(group: list[_Entry]) -> str | None:
    """Return why a tensor with these names is left out; an embedding among them protects all."""
    reasons = [entry.reason for entry in group]
    if EMBEDDING in reasons:
        return EMBEDDING if reasons[0] == EMBEDDING else f"also an embedding ({group[reasons.index(EMBEDDING)].name})"
    return None if None in reasons else reasons[0]


def _unfit(name: str, tensor: Tensor) -> str | None:
    """Return why a tensor cannot be ranked whatever its use."""
    leaf = name.rpartition(".")[2]
    if nn.parameter.is_lazy(tensor):
        return "not initialised yet"
    if leaf in _STATISTICS:
        return "running statistic"
    if tensor.layout is not torch.strided:
        return f"layout {tensor.layout}"
    if tensor.dtype not in KINDS:
        return f"element type {str(tensor.dtype).removeprefix('torch.')}"
    if _REPARAMETRISED.search(name):
        return "part of a re-parametrised weight; remove the parametrisation first"
    if leaf.startswith("bias"):
        return "bias"
    if tensor.dim() < 2:
        return "fewer than two dimensions (normalisation, scale)"
    if tensor.numel() == 0:
        return "no elements"
    expanded = any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return "expanded: several elements share one place in memory" if expanded else None


def _reason_by_type(module: nn.Module, leaf: str) -> str | None:
    """Return why a parameter of two or more dimensions is left out, judging by its module; None when it is ranked."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return EMBEDDING
    if isinstance(module, _NORMS):
        return NORM
    if leaf in _ATTENTION or (isinstance(module, _MATMUL) and leaf == "weight"):
        return None
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and _RECURRENT.match(leaf):
        return None
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__}
    if leaf == "weight" and kinds & _OTHER_MATMUL:
        return None
    return f"parameter of {type(module).__name__}, whose use is unknown"


def _reason_by_name(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> str | None:
    """Return why a tensor of two or more dimensions is left out, judging by names and shapes alone."""
    owner, _, leaf = name.rpartition(".")
    own = owner.rpartition(".")[2]
    if leaf in _ATTENTION or _RECURRENT.match(leaf):
        return None
    if leaf != "weight":
        return "free parameter: its name is not that of a layer's weight"
    if tensor.dim() == 2 and (_EMBEDDING.search(own) or _EMBEDDED.search(own)):
        return EMBEDDING
    bias = tensors.get(f"{owner}.bias" if owner else "bias")
    if _NORM.search(own) or (bias is not None and bias.shape == tensor.shape):
        return NORM
    return None


def _storage(tensor: Tensor) -> int:
    """Return an identity of the memory behind a tensor that also tells meta tensors apart."""
    return int(tensor.untyped_storage()._cdata)


def _same_memory(entries: Sequence[_Entry]) -> list[list[_Entry]]:
    """Group the entries that are the same view of the same memory, in order of first appearance."""
    groups: dict[object, list[_Entry]] = {}
    for entry in entries:
        tensor = entry.tensor
        plain = not nn.parameter.is_lazy(tensor) and tensor.layout is torch.strided and tensor.numel() > 0
        place: object = (
            (_storage(tensor), tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride())
            if plain
            else entry.name
        )
        groups.setdefault(place, []).append(entry)
    return list(groups.values())


def _overlaps(ranked: Sequence[Candidate]) -> dict[str, str]:
    """Return the tensors whose memory range cuts into that of an earlier one: name -> the earlier one's name."""
    spans: dict[int, list[tuple[int, int, str]]] = {}
    found: dict[str, str] = {}
    for item in ranked:
        tensor = item.tensor
        extent = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        start = int(tensor.storage_offset()) * tensor.element_size()
        end = start + int(extent) * tensor.element_size()
        others = spans.setdefault(_storage(tensor), [])
        clash = next((name for first, last, name in others if start < last and first < end), None)
        if clash is None:
            others.append((start, end, item.name))
        else:
            found[item.name] = clash
    return found
