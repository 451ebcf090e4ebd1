"""Scores of channels behind the pipeline: those of `pruners.channels`, and two that look at images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, get_args

from compress_cli.config import RECOVERY_SCORE
from compress_cli.errors import InputError, UnsupportedModelError, UsageError
from compress_cli.translate import channel_errors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_cli.config import RunConfig
    from compress_cli.quality import Quality
    from compress_cli.session import Session
    from pruners.channels import Group, Groups, ScoreOptions

MEASURED = "measured"
"""Magnitude inside a group, between groups what the outputs show (`pruners.channels.measuring`)."""
PLAIN: Final = "magnitude"
"""What channels are ranked by where nothing better is possible."""


def score_of(config: RunConfig) -> str:
    """The score asked for; else, with images to recover from, what removal costs after recovery.

    By price ResNet-56 recovers to 93.36 / 93.00 / 91.54 at 1.2x / 1.5x / 2x fewer MACs, by magnitude to 93.35 / 92.39 /
    90.43 (benchmarks/results/recovery.json).
    """
    return config.score or (RECOVERY_SCORE if config.calib else PLAIN)


def check_score(config: RunConfig) -> None:
    """Refuse unknown scores, and those that lack their images.

    Raises:
        UsageError: an unknown score, or no images are given.
    """
    from pruners.channels.scores import NEEDS_GRADIENTS, ScoreName

    known, score = (*get_args(ScoreName), MEASURED, RECOVERY_SCORE), score_of(config)
    if score not in known:
        raise UsageError(f"--score {score} is for other methods", f"channels take --score {', '.join(known)}")
    if score == RECOVERY_SCORE and not config.calib:
        raise UsageError(
            "--score recovery is measured on images, and the weights that stay are solved on them",
            "add --calib DIR with a few hundred unlabelled images",
        )
    if score in (MEASURED, *NEEDS_GRADIENTS) and not (config.calib or config.data or config.task):
        raise UsageError(f"the {score} score looks at images", "add --calib DIR, or --data or --task")


class Scorer:
    """Scores of one network by the run's configuration; a unit is looked at once, by the runs that share a session too.

    Attributes:
        score: what was ranked by last; prices that nobody asked for give way to sizes where a network has none.
    """

    def __init__(self, session: Session, quality: Quality | None, module: nn.Module) -> None:
        self.session, self.quality, self.module = session, quality, module
        self.score = self._wanted = score_of(session.config)
        with session.stage("scores"):
            self._gradients = _gradients(quality, module, self.score)
        self._known: list[tuple[Groups, Any, str]] = []

    @property
    def recorded(self) -> dict[str, str]:
        """What the plan's document says about the scores that were asked for last."""
        on_images = self.score in (RECOVERY_SCORE, MEASURED)
        return {"score": self.score, "normalise": "none" if on_images else self._options().normaliser}

    def __call__(self, groups: Groups) -> Any:
        """(units,) of each group, higher is more important.

        Raises:
            InputError: there are no calibration images.
            UnsupportedModelError: prices were asked for, and the network has none.
        """
        for known, scores, name in self._known:
            if known is groups:
                self.score = name
                return scores
        self.score = self._wanted
        found = self._found(groups)
        self._known.append((groups, found, self.score))
        return found

    def _found(self, groups: Groups) -> Any:
        from pruners.channels import score

        if self.score == MEASURED:
            return self._of_units(groups, _measured)
        if self.score == RECOVERY_SCORE:
            try:
                found = self._of_units(groups, _prices)
                if self.session.config.score is None:
                    self.session.note("channels are ranked by what recovery cannot restore, the default with --calib")
                return found
            except UnsupportedModelError as error:
                if self.session.config.score is not None:
                    raise
                self.score = self._wanted = PLAIN
                self.session.warn(f"channels are ranked by {PLAIN}, not by what recovery cannot restore: {error}")
        return score(self.module, groups, self._options(), gradients=self._gradients)

    def _of_units(self, groups: Groups, look: Callable[..., Any]) -> Any:
        """Scores that run the network: once for the units of all analyses of it, the narrower ones of tier 3 too."""
        import numpy as np

        config = self.session.config
        settings = f"{self.score} {config.calib} {config.calib_samples} {config.seed}"
        known: dict[Any, float] = self.session.shared.once(f"scores of channels: {settings}", dict)
        units = [_units(group) for group in groups.groups]
        if not all(unit in known for listed in units for unit in listed):
            found = look(self.session, self.quality, self.module, groups)
            for listed, values in zip(units, found, strict=True):
                known.update(zip(listed, map(float, values), strict=True))
        return [np.asarray([known[unit] for unit in listed]) for listed in units]

    def _options(self) -> ScoreOptions:
        from pruners.channels import ScoreOptions

        return ScoreOptions(self.score)  # type: ignore[arg-type]


def _units(group: Group) -> list[frozenset[tuple[str, int, tuple[int, ...]]]]:
    """What each unit of a group owns."""
    members = [(member.tensor, member.dim, member.index.tolist()) for member in group.members]
    return [
        frozenset((tensor, dim, tuple(index[unit])) for tensor, dim, index in members) for unit in range(group.units)
    ]


def _prices(session: Session, quality: Quality | None, module: nn.Module, groups: Groups) -> Any:
    """What the removal of each channel costs after recovery.

    Raises:
        InputError: there are no calibration images.
    """
    from compress_cli.recovering import recovery_errors
    from compress_cli.recovery.channel_prices import channel_prices

    batches, seed = list(_with_images(quality).calibration()), session.config.seed
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

    quality = _with_images(quality)
    batches = [tuple(part.to(quality.device) for part in batch) for batch in quality.calibration(SAMPLES)]
    base = score(module, groups, ScoreOptions(PLAIN, "none"))
    with placed(module, quality.device), session.out.progress("Measuring each group") as bar:
        return measured(module, groups, base, batches, bar.update)


def _with_images(quality: Quality | None) -> Quality:
    if quality is None or not quality.can_recalibrate:
        raise InputError("there are no calibration images", "pass --calib DIR, or --data with a train/ folder")
    return quality


def _gradients(quality: Quality | None, module: nn.Module, score: str) -> dict[str, Tensor] | None:
    """What the score needs of the images; None for scores that look at weights only.

    Raises:
        InputError: there are no calibration images.
    """
    from pruners.channels import mean_gradients, mean_squared_gradients
    from pruners.channels.scores import NEEDS_GRADIENTS

    if score not in NEEDS_GRADIENTS:
        return None
    quality = _with_images(quality)
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
