"""Fine-tuning: one loop for every method. `finetune` is what the pipeline calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
) -> dict[str, Any]:
    """Train a compressed module on, in place; it ends in eval mode on the CPU.

    Args:
        recipe: the numbers; None chooses them from the run's flags and the sparsity.
        constraint: what must hold after every step (`pruners.masks.Masks`); None trains freely.
        schedule: how the sparsity grows in the modes `gradual` and `st3`; None for the default ramp.
        plan: the method's plan; for magnitude pruning, --schedule may rank its tensors anew while training.
        teacher: the original; used when the recipe distils.

    Returns:
        The report's section on training.

    Raises:
        KeyboardInterrupt: stopped from outside; the state is saved and `--resume` goes on.
        TrainingDiverged: the loss is no number any more.
        InputError: data or disk failed; the last saved state is whole.
    """
    from compress_cli.training.modes import choose_sparsifier, final_sparsity
    from compress_cli.training.placing import placed
    from compress_cli.training.recipe import choose_recipe
    from compress_cli.training.trainer import Trainer, step_plan

    config = session.config
    if config.teacher is not None:
        from compress_cli.training.teacher import open_teacher

        teacher = open_teacher(config)
    if recipe is None:
        sparsity = final_sparsity(module, constraint, plan)
        distils = teacher is not None and (config.distill or config.teacher is not None)
        recipe = choose_recipe(config, sparsity=sparsity, distils=distils)
    steps = step_plan(recipe, len(quality.train))[1] * recipe.epochs
    sparsifier = choose_sparsifier(module, constraint, plan, config.schedule, steps, schedule)
    for reason in recipe.reasons:
        session.out.detail(f"  {reason}")
    device = quality.device
    with placed(module, device):
        if teacher is not None and (recipe.distill > 0 or recipe.features > 0):
            teacher.eval()
            with placed(teacher, device):
                return Trainer(module, quality, recipe, session, sparsifier=sparsifier, teacher=teacher).run()
        return Trainer(module, quality, recipe, session, sparsifier=sparsifier, teacher=None).run()


__all__ = ["finetune"]
