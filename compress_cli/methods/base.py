"""What the pipeline asks of a compression method.

A method plans on a loaded model, applies its plan in place, proves what it did, and says what to count in the files
that were written. It never reports its own success: `achieved` and `layers` get the tensors read back from the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from compress_cli.errors import VerificationError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_cli.checkpoint import LoadedModel
    from compress_cli.config import RunConfig
    from compress_cli.quality import Quality
    from compress_cli.report import Achieved, Gate, LayerRow, Skipped
    from compress_cli.session import Session


BUG = "this is a bug in compress: please report it with the run folder's log.txt"


class Plan(Protocol):
    """A decision that holds no tensors; every method has its own class."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with the key `method`."""

    def explain(self) -> str:
        """The plan as lines of text."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Both ends of a run as read from the files, for counting.

    Attributes:
        before, after: tensors of the original checkpoint and of the written `model.pt`, by name.
        complexity_before, complexity_after: of traces of the two models (profilers.complexity); None without a module.
    """

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    complexity_before: Any | None
    complexity_after: Any | None


class Method(Protocol):
    """One compression method; instances hold no state."""

    needs_module: bool
    """Whether the method works on a network; False: the tensors of a bare state dict are enough."""

    def check(self, config: RunConfig) -> None:
        """Refuse missing or contradictory flags before anything is read (raises UsageError)."""

    def plan(self, session: Session, loaded: LoadedModel, quality: Quality | None) -> Plan:
        """Decide what to remove; the model is not changed."""

    def apply_(self, loaded: LoadedModel, plan: Any) -> None:
        """Change `loaded.module` (or `loaded.tensors` where there is none) in place."""

    def settle(self, session: Session, loaded: LoadedModel, plan: Any) -> Plan:
        """The plan as it is after training: the same one, unless training went on selecting."""

    def prove(self, original: nn.Module, loaded: LoadedModel, plan: Any) -> dict[str, Any] | None:
        """The report's proof that the change is what was planned; None when counting is the proof.

        Raises:
            VerificationError: the proof failed.
        """

    def constraint(self, module: nn.Module, plan: Any) -> Any:
        """What training must enforce after every step (`pruners.masks.Masks`); None when nothing."""

    def removed(self, module: nn.Module, plan: Any) -> Any:
        """What recovery needs to know about the removal (compress_cli.recovery); None when it cannot act on it."""

    def warnings(self, plan: Any) -> tuple[str, ...]:
        """What the user should know about the plan."""

    def skipped(self, plan: Any) -> tuple[Skipped, ...]:
        """What was left alone, with reasons."""

    def achieved(self, config: RunConfig, plan: Any, measured: Measured) -> tuple[Achieved, ...]:
        """Asked against found, counted in the files."""

    def layers(self, plan: Any, measured: Measured) -> tuple[LayerRow, ...]:
        """Per layer before and after, counted in the files."""

    def gates(self, plan: Any) -> tuple[Gate, ...]:
        """Verdicts on limits that only the method can judge; empty for most."""


def compare_counts(what: str, planned: int, counted: int) -> None:
    """Refuse a file that does not hold what the plan predicted.

    Raises:
        VerificationError: it does not.
    """
    if planned != counted:
        raise VerificationError(f"the plan saves {planned:,} {what}, the written model {counted:,}", BUG)
