"""What was removed: the least that recovery must know to put the compressed network beside the original.

Masks need nothing (zeros are the mask); factors are found by structure (a layer `X` of the original that became
`X.0`, `X.1`, ...); channels need the surviving output channels of each layer, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Correspondence:
    """How the layers of a compressed network belong to those of the original.

    Names are those of weights (`layer1.0.conv1.weight`) or of the layers that hold them (`layer1.0.conv1`).

    Attributes:
        kept_outputs: layer -> indices of the original's output channels that remain, ascending; layers that are not
            named have all of theirs.
        factors: weight of the original -> weight of the layer that gives its output now (the decoder); those that
            are not named are found by structure.
        ignore: layers whose weights stay as they are.
    """

    kept_outputs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    factors: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()

    def kept(self, weight: str) -> Sequence[int] | None:
        """The remaining output channels of a weight of the original; None for all."""
        return self.kept_outputs.get(weight, self.kept_outputs.get(owner(weight)))

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


def as_correspondence(given: Correspondence | Iterable[str] | None) -> Correspondence:
    """Accept what callers have: nothing, names of masked tensors (their zeros say the rest), or the real thing."""
    return given if isinstance(given, Correspondence) else Correspondence()
