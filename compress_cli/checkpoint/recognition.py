"""Name the torchvision builder that a plain state dict comes from, by its tensors' names and shapes.

Candidates come from the index by the hash of all names; sizes that depend on the number of classes are solved for; the
winner is built without memory and compared name by name. Nothing is recognised on a guess: without an exact match
there are only the closest builders, for the message.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from compress_cli.checkpoint.architecture import Architecture, build
from compress_cli.checkpoint.builder_index import (
    COUNTER,
    Candidate,
    Shape,
    builder_shapes,
    describe,
    floating_builders,
    index_is_current,
    name_codes,
    names_hash,
    read_index,
    without_counters,
)
from compress_cli.checkpoint.names import modern_names
from compress_cli.errors import InputError

_CLOSE = 0.3  # below this share of common names a "closest match" would only mislead
_OWN_CODE = "pass --arch path/to/net.py:factory, or --arch torchvision:NAME"


@dataclass(frozen=True, slots=True)
class Recognition:
    """What a set of tensors was recognised as.

    Attributes:
        architecture: what rebuilds the network; None when no builder matches exactly.
        num_classes: read from the last layer, also when it is the builder's default.
        ambiguous_with: other references whose networks have the same tensors.
        closest: builders by share of common tensor names, when there is no match.
        advice: what to type when there is no match.
    """

    architecture: Architecture | None
    num_classes: int | None = None
    ambiguous_with: tuple[str, ...] = ()
    closest: tuple[tuple[str, float], ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    advice: str = ""


def recognise(tensors: Mapping[str, Tensor]) -> Recognition:
    """Find the torchvision builder whose tensors have exactly these names and shapes.

    Absent `num_batches_tracked` counters are forgiven. Nothing is allocated.

    Example: the state dict of `resnet18(num_classes=10)` gives `torchvision:resnet18 num_classes=10`.
    """
    begin = time.perf_counter()
    today = modern_names(tensors.keys())
    everything = {today[name]: tuple(tensor.shape) for name, tensor in tensors.items()}
    shapes = {name: everything[name] for name in without_counters(everything)}
    known, codes = read_index()
    matches = _exact(known, everything, shapes) or _exact(_unindexed(known, shapes), everything, shapes)
    if matches:
        return _recognised(matches, shapes, time.perf_counter() - begin)
    closest = _closest(known, codes, shapes)
    if not index_is_current() and (again := _exact(_described_again(closest), everything, shapes)):
        return _recognised(again, shapes, time.perf_counter() - begin)
    return Recognition(
        None, closest=closest, advice=_advice(closest, known, shapes), seconds=time.perf_counter() - begin
    )


@dataclass(frozen=True, slots=True)
class _Match:
    candidate: Candidate
    values: Mapping[str, int]

    @property
    def architecture(self) -> Architecture:
        """The builder with the arguments that differ from its defaults."""
        defaults = self.candidate.defaults
        changed = {name: value for name, value in self.values.items() if defaults.get(name) != value}
        return Architecture(f"torchvision:{self.candidate.builder}", tuple({**self.candidate.args, **changed}.items()))

    @property
    def order(self) -> tuple[int, int, str]:
        """The plainest name first: of twins such as `fpn` and `320_fpn`, the one without a specialisation."""
        return len(self.architecture.args), len(self.candidate.builder), self.candidate.builder


def _exact(candidates: list[Candidate], everything: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> list[_Match]:
    """Candidates that fit, plainest first; each one is built on meta and compared before it counts."""
    wanted = names_hash(shapes)
    solved = [
        _Match(candidate, values)
        for candidate in candidates
        if candidate.names == wanted and (values := candidate.solve(shapes)) is not None
    ]
    return [match for match in sorted(solved, key=lambda match: match.order) if _verified(match, everything)]


def _verified(match: _Match, everything: Mapping[str, Shape]) -> bool:
    """Whether the builder's tensors have exactly the file's names and shapes (counters may be absent)."""
    try:
        state = build(match.architecture, meta=True).state_dict()
    except InputError:  # the installed torchvision lacks this builder or one of its arguments
        return False
    own = {name: tuple(value.shape) for name, value in state.items()}
    absent = own.keys() - everything.keys()
    return all(name.endswith(COUNTER) for name in absent) and all(
        own.get(name) == shape for name, shape in everything.items()
    )


def _unindexed(known: list[Candidate], shapes: Mapping[str, Shape]) -> list[Candidate]:
    """Candidates of builders newer than the index whose names agree, described on the fly."""
    indexed = {candidate.builder for candidate in known}
    wanted = names_hash(shapes)
    return [item for item in _describe_new(indexed) if item.names == wanted]


def _describe_new(indexed: set[str]) -> Iterator[Candidate]:
    for builder in floating_builders():
        if builder not in indexed:
            try:
                yield from describe(builder)
            except (InputError, ValueError, KeyError):  # a builder of an unforeseen kind: it is not recognised
                continue


def _described_again(closest: tuple[tuple[str, float], ...]) -> list[Candidate]:
    """Candidates of builders that the installed torchvision may define otherwise than the index's."""
    found: list[Candidate] = []
    for reference, _ in closest:
        try:
            found += describe(reference.partition(":")[2])
        except (InputError, ValueError, KeyError):  # gone, or of an unforeseen kind
            continue
    return found


def _recognised(matches: list[_Match], shapes: Mapping[str, Shape], seconds: float) -> Recognition:
    best, others = matches[0], tuple(str(match.architecture) for match in matches[1:])
    notes = [f"recognised by its tensors as {best.architecture}"]
    if others:
        notes.append(f"the same tensors also fit {', '.join(others)}: pass --arch to choose that one")
    if best.candidate.builder in ("googlenet", "inception_v3"):
        notes.append(
            f"{best.candidate.builder}: weights that began as torchvision's pretrained ones need "
            "--arch-args transform_input=true; the file does not tell"
        )
    return Recognition(best.architecture, best.values.get("num_classes"), others, (), seconds, tuple(notes))


def _closest(
    known: list[Candidate], codes: Mapping[str, set[bytes]], shapes: Mapping[str, Shape]
) -> tuple[tuple[str, float], ...]:
    """Up to three builders by share of common names, the shortest name first among equals."""
    own = name_codes(shapes)
    shares: dict[str, float] = {}
    for candidate in known:
        theirs = codes[candidate.names]
        share = len(own & theirs) / max(len(own), len(theirs), 1)
        shares[candidate.builder] = max(share, shares.get(candidate.builder, 0.0))
    ranked = sorted(shares.items(), key=lambda item: (-item[1], len(item[0]), item[0]))
    return tuple((f"torchvision:{name}", round(share, 3)) for name, share in ranked[:3] if share >= _CLOSE)


def _advice(closest: tuple[tuple[str, float], ...], known: list[Candidate], shapes: Mapping[str, Shape]) -> str:
    """What to type when nothing fits, with the closest builder and where the file departs from it."""
    if not closest:
        return f"no torchvision builder has similar tensors; {_OWN_CODE}"
    reference, share = closest[0]
    theirs = builder_shapes(reference.partition(":")[2], {})
    text = f"closest match by tensor names: {reference} ({share:.0%} of the names)"
    return f"{text}{_first_difference(shapes, theirs)}; {_OWN_CODE}"


def _first_difference(shapes: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> str:
    extra = next((name for name in shapes if name not in theirs), None)
    lacking = next((name for name in theirs if name not in shapes), None)
    if extra or lacking:
        return ", but " + " and ".join(
            f"{where} has {name}" for where, name in (("the file", extra), ("the builder", lacking)) if name
        )
    name = next((name for name in shapes if shapes[name] != theirs[name]), None)
    return f", but {name} is {_text(shapes[name])} in the file, {_text(theirs[name])} there" if name else ""


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
