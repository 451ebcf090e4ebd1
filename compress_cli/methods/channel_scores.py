"""Scores of channels behind the pipeline: those of `pruners.channels`, and two that look at images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

from compress_cli.errors import InputError, UsageError
from compress_cli.translate import channel_errors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_cli.config import RunConfig
    from compress_cli.quality import Quality
    from compress_cli.session import Session
    from pruners.channels import Groups, ScoreOptions

RECOVERY = "recovery"
"""Prices after compensation (`compress_cli.recovery.channel_prices`)."""
MEASURED = "measured"
"""Magnitude inside a group, between groups what the outputs show (`pruners.channels.measuring`)."""


def check_score(config: RunConfig) -> None:
    """Refuse unknown scores, and those that lack their images.

    Raises:
        UsageError: an unknown score, or no images are given.
    """
    from pruners.channels.scores import NEEDS_GRADIENTS, ScoreName

    known = (*get_args(ScoreName), MEASURED, RECOVERY)
    if config.score not in known:
        raise UsageError(f"--score {config.score} is for other methods", f"channels take --score {', '.join(known)}")
    options = _options(config)
    if config.score == RECOVERY and not config.calib:
        raise UsageError(
            "--score recovery is measured on images, and the weights that stay are solved on them",
            "add --calib DIR with a few hundred unlabelled images",
        )
    needs_images = config.score == MEASURED or options.score in NEEDS_GRADIENTS
    if needs_images and not (config.calib or config.data or config.task):
        raise UsageError(f"the {config.score} score looks at images", "add --calib DIR, or --data or --task")


class Scorer:
    """Scores of one network by the run's configuration; an analysis is scored once.

    Attributes:
        recorded: what the plan's document says about it.
    """

    def __init__(self, session: Session, quality: Quality | None, module: nn.Module) -> None:
        self.session, self.quality, self.module = session, quality, module
        self.options = _options(session.config)
        self.on_images = {RECOVERY: _prices, MEASURED: _measured}.get(session.config.score)
        with session.stage("scores"):
            self.gradients = None if self.on_images else _gradients(quality, module, self.options.score)
        if session.config.calib and session.config.score == "magnitude":
            session.note(
                "channels are ranked by size: --score recovery prices them by what is lost after the rest made up for "
                "it, on the images of --calib"
            )
        self.recorded = (
            {"score": session.config.score, "normalise": "none"}
            if self.on_images
            else {"score": self.options.score, "normalise": self.options.normaliser}
        )
        self._known: list[tuple[Groups, Any]] = []

    def __call__(self, groups: Groups) -> Any:
        """(units,) of each group, higher is more important.

        Raises:
            InputError: there are no calibration images.
        """
        from pruners.channels import score

        for known, scores in self._known:
            if known is groups:
                return scores
        if self.on_images:
            found = self.on_images(self.session, self.quality, self.module, groups)
        else:
            found = score(self.module, groups, self.options, gradients=self.gradients)
        self._known.append((groups, found))
        return found


def _options(config: RunConfig) -> ScoreOptions:
    from pruners.channels import ScoreOptions

    return ScoreOptions("magnitude" if config.score in (RECOVERY, MEASURED) else config.score)  # type: ignore[arg-type]


def _prices(session: Session, quality: Quality | None, module: nn.Module, groups: Groups) -> Any:
    """What the removal of each channel costs after recovery.

    Raises:
        InputError: there are no calibration images.
    """
    from compress_cli.recovering import recovery_errors
    from compress_cli.recovery.channel_prices import channel_prices

    batches, seed = _images(quality), session.config.seed
    with recovery_errors(), session.out.progress("Pricing channels") as bar:
        return channel_prices(module, batches, groups, seed=seed, on_step=bar.update)


def _measured(session: Session, quality: Quality | None, module: nn.Module, groups: Groups) -> Any:
    """Magnitude, brought into one currency by what the outputs show.

    Raises:
        InputError: there are no calibration images.
    """
    from compress_cli.training.placing import placed
    from pruners.channels import ScoreOptions, measured, score
    from pruners.channels.measuring import SAMPLES

    assert quality is not None
    batches = [tuple(part.to(quality.device) for part in batch) for batch in _images(quality, SAMPLES)]
    base = score(module, groups, ScoreOptions("magnitude", "none"))
    with placed(module, quality.device), session.out.progress("Measuring each group") as bar:
        return measured(module, groups, base, batches, bar.update)


def _images(quality: Quality | None, count: int | None = None) -> list[Any]:
    if quality is None or not quality.can_recalibrate:
        raise InputError("there are no calibration images", "pass --calib DIR")
    return list(quality.calibration(count))


def _gradients(quality: Quality | None, module: nn.Module, score: str) -> dict[str, Tensor] | None:
    """What the score needs of the images; None for scores that look at weights only.

    Raises:
        InputError: there are no calibration images.
    """
    from pruners.channels import mean_gradients, mean_squared_gradients
    from pruners.channels.scores import NEEDS_GRADIENTS

    if score not in NEEDS_GRADIENTS:
        return None
    if quality is None or not quality.can_recalibrate:
        raise InputError("there are no calibration images", "pass --calib DIR, or --data with a train/ folder")
    batches, loss = _batches(quality, one_by_one=score == "fisher"), _loss(quality)
    with channel_errors():
        return (mean_squared_gradients if score == "fisher" else mean_gradients)(module, batches, loss)


def _batches(quality: Quality, *, one_by_one: bool) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(inputs, target) per batch, or per sample."""
    from torch.utils import _pytree as pytree

    for batch in quality.calibration_batches():
        if not one_by_one:
            yield tuple(item.cpu() for item in batch.inputs), pytree.tree_map(_on_cpu, batch.target)
            continue
        for place in range(len(batch)):
            inputs = tuple(item[place : place + 1].cpu() for item in batch.inputs)
            yield inputs, pytree.tree_map(lambda x, p=place: _on_cpu(x)[p : p + 1], batch.target)


def _on_cpu(item: Any) -> Any:
    return item.cpu() if hasattr(item, "cpu") else item


def _loss(quality: Quality) -> Any:
    """The tasks' loss; without labels the loss against the network's own most likely class, or output energy."""
    import torch
    import torch.nn.functional as F

    from exporters.outputs import flatten_outputs

    labelled = quality.data.calib_labelled and bool(quality.tasks)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs, target = batch
        outputs = flatten_outputs(model(*inputs))
        if labelled:
            parts = [task.weight * task.losses(outputs, target).nanmean() for task in quality.tasks]
        else:
            parts = [
                F.cross_entropy(value, value.detach().argmax(1)) if value.dim() > 1 else value.square().mean()
                for value in outputs.values()
                if value.is_floating_point()
            ]
        return torch.stack(parts).sum()

    return loss
