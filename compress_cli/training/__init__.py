"""Fine-tuning: one loop for every method. `finetune` is what the pipeline calls."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from compress_cli.quality import Quality
    from compress_cli.session import Session
    from compress_cli.training.recipe import Recipe
    from pruners.schedules import Schedule


def finetune(
    module: nn.Module,
    quality: Quality,
    *,
    session: Session,
    recipe: Recipe | None = None,
    constraint: Any | None = None,
    schedule: Schedule | None = None,
    plan: Any | None = None,
    teacher: nn.Module | None = None,
    factored: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a compressed module on, in place; it ends in eval mode on the CPU.

    Args:
        recipe: the numbers; None chooses them by `choosing.py` from the flags and what the network starts with.
        constraint: what must hold after every step (`pruners.masks.Masks`); None trains freely.
        schedule: how the sparsity grows in the modes `gradual` and `st3`; None for the default ramp.
        plan: the method's plan; for magnitude pruning, --schedule may rank its tensors anew while training.
        teacher: the original; used when the recipe distils.
        factored: layers that are pairs of an encoder and a decoder now.

    Returns:
        The report's section on training.

    Raises:
        KeyboardInterrupt: stopped from outside; the state is saved and `--resume` goes on.
        TrainingDiverged: the loss is no number any more.
        InputError: data or disk failed; the last saved state is whole.
    """
    from compress_cli.training import distributed
    from compress_cli.training.modes import choose_sparsifier, final_sparsity
    from compress_cli.training.optimizers import step_plan
    from compress_cli.training.placing import placed
    from compress_cli.training.trainer import Trainer

    config = session.config
    original = teacher if config.verb != "finetune" else None  # a run cannot know what others compressed
    if config.teacher is not None:
        from compress_cli.training.teacher import open_teacher

        teacher = open_teacher(config)
        original = teacher if original is None else original
    if recipe is None:
        sparsity = final_sparsity(module, constraint, plan)
        distils = teacher is not None and (config.distill or config.teacher is not None)
        recipe = distributed.computed_by_first(
            lambda: _chosen(module, original, quality, session, sparsity=sparsity, distils=distils)
        )
    steps = step_plan(recipe, len(quality.train))[1] * recipe.epochs
    sparsifier = choose_sparsifier(module, constraint, plan, config.schedule, steps, schedule)
    session.out.info(f"  {recipe.words()}")
    for reason in recipe.reasons:
        session.out.info(f"  {reason}")
    device = quality.device
    distilled = teacher if recipe.distill > 0 or recipe.features > 0 else None
    with placed(module, device), placed(distilled, device) if distilled is not None else nullcontext():
        if distilled is not None:
            distilled.eval()
        made = Trainer(module, quality, recipe, session, sparsifier=sparsifier, teacher=distilled, factored=factored)
        return made.run()


def _chosen(
    module: nn.Module,
    original: nn.Module | None,
    quality: Quality,
    session: Session,
    *,
    sparsity: float | None,
    distils: bool,
) -> Recipe:
    """The recipe by rule; a run that is resumed keeps what rules chose when it began."""
    from compress_cli.training.choosing import DISTANCE_IMAGES, Start, choose_recipe, distance_left, only_layer_norms
    from compress_cli.training.placing import placed
    from compress_cli.training.saving import STATE, load_state

    config, device = session.config, quality.device
    state = load_state(session.folder.file(STATE)) if session.resume else None
    distance = None
    begun = config.schedule == "one-shot"  # else nothing has been removed yet
    if original is not None and begun and state is None and config.lr is None and quality.can_recalibrate:
        with placed(module, device), placed(original, device):
            distance = distance_left(original, module, quality.calibration(DISTANCE_IMAGES), device)
    again = config.verb == "finetune"
    start = Start(len(quality.train), sparsity, distance, only_layer_norms(module), distils, tuned_before=again)
    return choose_recipe(config, start, None if state is None else state["recipe"])


__all__ = ["finetune"]
