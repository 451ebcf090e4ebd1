"""What a user can ask of a decomposition."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from decomposers.folding import SCHEMES

Objective = Literal["max", "sum"]
Error = Literal["score", "fro", "output", "variance", "rank"]
Method = Literal["alds", "svd", "svd-energy", "pca"]
OBJECTIVES: tuple[Objective, ...] = ("max", "sum")
ERRORS: tuple[Error, ...] = ("score", "fro", "output", "variance", "rank")
NEED_IMAGES: tuple[Error, ...] = ("output", "variance")
METHODS: tuple[Method, ...] = ("alds", "svd", "svd-energy", "pca")


@dataclass(frozen=True, slots=True)
class AldsOptions:
    """Options of a decomposition; checked on construction.

    Raises:
        ValueError: an unknown name, or numbers out of range.
    """

    objective: Objective = field(
        default="max", metadata={"help": "max: least largest error of all layers; sum: least sum of squared errors"}
    )
    error: Error = field(
        default="score",
        metadata={
            "help": "score: the paper's; fro: relative Frobenius norm; output: of the layer's output on images;"
            " variance: of its deviation from the mean (PCA); rank: share of the rank removed"
        },
    )
    schemes: tuple[int, ...] = field(default=(0,), metadata={"help": "folding schemes to choose from, 0 to 3"})
    max_groups: int | None = field(
        default=None, metadata={"help": "largest number of slices per layer; grouped layers save size, not time"}
    )
    linear_groups: bool = field(default=False, metadata={"help": "allow slices in linear layers too"})
    spend: bool = field(default=True, metadata={"help": "use what is left of the budget for the worst layers"})
    ignore: tuple[str, ...] = field(default=(), metadata={"help": "patterns of layers left alone"})
    only: tuple[str, ...] = field(default=(), metadata={"help": "patterns of the layers considered"})

    def __post_init__(self) -> None:
        for name, value, known in (
            ("objective", self.objective, OBJECTIVES),
            ("error", self.error, ERRORS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        if not self.schemes or any(scheme not in SCHEMES for scheme in self.schemes):
            raise ValueError(f"schemes must be some of {', '.join(map(str, SCHEMES))}, not {self.schemes!r}")
        if self.max_groups is not None and self.max_groups < 1:
            raise ValueError(f"max_groups must be 1 or more, not {self.max_groups}")

        if self.needs_images and self.schemes != (0,):
            raise ValueError(f"the error {self.error} is defined for scheme 0 only, not {self.schemes!r}")
        if self.error == "variance" and self.max_groups != 1:
            raise ValueError("the error variance is defined for one slice only: set max_groups to 1")

    @property
    def needs_images(self) -> bool:
        """Whether the error is measured on images."""
        return self.error in NEED_IMAGES

    def limit(self, linear: bool) -> int | None:
        """Return the largest number of slices of a convolution or a linear layer; None for no limit."""
        return 1 if linear and not self.linear_groups else self.max_groups


def options_of(method: Method, ignore: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> AldsOptions:
    """Return the options that make up a named method.

    svd keeps the same share of the rank in every layer, svd-energy the same share of the squared singular values,
    pca the same share of the variance of the output on images; all three with one slice per layer.

    Raises:
        ValueError: an unknown method.
    """
    errors: dict[str, Error] = {"alds": "score", "svd": "rank", "svd-energy": "fro", "pca": "variance"}
    if method not in errors:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if method == "alds":
        return AldsOptions(ignore=ignore, only=only)
    return AldsOptions(error=errors[method], max_groups=1, spend=False, ignore=ignore, only=only)
