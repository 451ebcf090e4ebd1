"""What one sample tells before training: where features are compared, which parameters get no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from compress_cli.data import Batch
from compress_cli.training.features import FeaturePoints
from compress_cli.training.objective import Objective
from compress_cli.training.orthogonal import Encoders
from compress_cli.training.recipe import Recipe
from profilers.modes import eval_mode

if TYPE_CHECKING:
    from compress_cli.session import Session


def has_unused_parameters(module: nn.Module, objective: Objective, sample: Callable[[], Batch]) -> bool:
    """Whether some parameter gets no gradient from the loss: processes must not wait for it."""
    with eval_mode(module), objective.watched():
        objective(module, sample()).backward()  # type: ignore[no-untyped-call]
    unused = any(weight.grad is None for weight in module.parameters() if weight.requires_grad)
    module.zero_grad(set_to_none=True)
    return unused


def feature_points(
    module: nn.Module, teacher: nn.Module | None, recipe: Recipe, sample: Callable[[], Batch], session: Session
) -> FeaturePoints | None:
    """Where features are compared; None without that wish, a teacher, or a point of equal shape."""
    if teacher is None or not recipe.features:
        return None
    points = FeaturePoints(module, teacher, sample().inputs)
    if not points.names:
        session.warn("no features are distilled: no module has the original's output shape")
        return None
    session.out.info(f"  features compared at {', '.join(points.names)}")
    return points


def encoders_kept_orthogonal(
    module: nn.Module, factored: Sequence[str], recipe: Recipe, session: Session
) -> Encoders | None:
    """The encoders whose rows are kept apart; None without that wish or without decomposed layers."""
    if not recipe.orthogonal:
        return None
    encoders = Encoders(module, factored)
    if not len(encoders):
        session.warn("--recipe orthogonal: no layer is decomposed, so there are no encoders to keep orthogonal")
        return None
    return encoders
