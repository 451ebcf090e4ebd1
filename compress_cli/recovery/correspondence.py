"""What was removed: the least that recovery must know to put the compressed network beside the original.

Masks need nothing (zeros are the mask); factors are found by structure (a layer `X` of the original that became
`X.0`, `X.1`, ...); channels need the surviving output channels of each layer, in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Correspondence:
    """How the layers of a compressed network belong to those of the original.

    Names are those of weights (`layer1.0.conv1.weight`) or of the layers that hold them (`layer1.0.conv1`).

    Attributes:
        kept_outputs: layer -> indices of the original's output channels that remain, ascending; layers that are not
            named have all of theirs.
        keep: the same as `pruners.channels` writes it: tensor -> dim -> indices that remain.
        factors: weight of the original -> weight of the layer that gives its output now (the decoder); those that
            are not named are found by structure.
        ignore: layers whose weights stay as they are.
    """

    kept_outputs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    keep: Mapping[str, Mapping[int, Sequence[int]]] = field(default_factory=dict)
    factors: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()

    def kept(self, weight: str, dim: int) -> Sequence[int] | None:
        """The remaining output channels of a weight of the original, which lie along `dim`; None for all."""
        found = self.kept_outputs.get(weight, self.kept_outputs.get(owner(weight)))
        return self.keep.get(weight, {}).get(dim) if found is None else found

    def leaves_alone(self, weight: str) -> bool:
        """Whether the weight is one of those to ignore."""
        return weight in self.ignore or owner(weight) in self.ignore

    def partner(self, weight: str, present: Sequence[str]) -> str | None:
        """Return the weight that gives the output of an original weight in the compressed network.

        Args:
            weight: of the original.
            present: weights that the compressed network uses, in execution order.
        """
        for name in (weight, owner(weight)):
            if name in self.factors:
                found = self.factors[name]
                return found if found in present else next((p for p in present if owner(p) == found), None)
        if weight in present:
            return weight
        inside = [name for name in present if name.startswith(f"{owner(weight)}.")]
        return inside[-1] if inside and owner(weight) else None


def owner(weight: str) -> str:
    """The layer that holds a tensor."""
    return weight.rpartition(".")[0]


def as_correspondence(given: Any) -> Correspondence:
    """Accept what callers have.

    Args:
        given: a `Correspondence`; a plan of `pruners.channels`, whose `keep` counts; or anything else, such as None or
            the names of masked tensors, where zeros and structure say all there is to know.
    """
    if isinstance(given, Correspondence):
        return given
    keep = getattr(given, "keep", None)
    return Correspondence(keep=keep) if isinstance(keep, Mapping) else Correspondence()
