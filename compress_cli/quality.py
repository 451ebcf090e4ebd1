"""`Quality`: how good a model is on the user's data, and the images and tasks that training and calibration use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress_cli.data import Batch, Data, Split, open_data
from compress_cli.data.subsets import choose, chunks
from compress_cli.errors import InputError
from compress_cli.report import TaskRow
from compress_cli.training import distributed
from compress_cli.training.batchnorm import reestimate_if_better_
from compress_cli.training.placing import choose_device, placed
from exporters.outputs import evaluating, flatten_outputs
from pruners.batchnorm import Original

if TYPE_CHECKING:
    from compress_cli.checkpoint import LoadedModel
    from compress_cli.session import Session
    from compress_cli.tasks import Task

BATCH = 250
"""Images a batch for evaluation and calibration of small inputs; fewer for larger ones."""
_BATCH_VALUES = BATCH * 3 * 64 * 64
HELD_OUT = 1000
"""Images at most that decide whether new batch-norm statistics are kept."""


@dataclass(frozen=True, slots=True)
class Score:
    """One task on one set: the metric, the mean loss, and over how many samples."""

    value: float
    loss: float
    samples: int


def open_quality(session: Session, loaded: LoadedModel) -> Quality | None:
    """What the run's flags give to measure and improve a model with; None when they name no data.

    Raises:
        InputError, UsageError: data that cannot be used, or that does not fit the network.
    """
    config = session.config
    if loaded.module is None and (config.data or config.task or config.calib):
        raise InputError(
            f"--data, --task and --calib need the network itself, but {loaded.missing_reason}",
            "pass --arch (and --input-shape), or drop the data flags to prune the tensors alone",
        )
    device = choose_device(config.device)
    data = open_data(config, loaded, session.out.info)
    if data is None or loaded.module is None:
        if config.epochs:
            session.warn(f"--epochs {config.epochs}: nothing is trained without --data or --task")
        return None
    quality = Quality(session, data, device)
    quality.check_fit(loaded.module)
    return quality


class Quality:
    """Tasks and data of one run, with the operations that every method needs of them."""

    def __init__(self, session: Session, data: Data, device: torch.device) -> None:
        self.session = session
        self.data = data
        self.device = device
        self.record: dict[str, Any] = {**data.record, "device": str(device)}
        self._first = not session.resume  # the first run has judged the original

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the network is asked to do; empty with unlabelled images only."""
        return self.data.tasks

    @property
    def can_evaluate(self) -> bool:
        """Whether there is a test split with targets."""
        return self.data.test is not None and bool(self.tasks)

    @property
    def can_train(self) -> bool:
        """Whether there is a training split with targets."""
        return self.data.train is not None and bool(self.tasks)

    @property
    def can_recalibrate(self) -> bool:
        """Whether there are images to re-estimate batch-norm statistics from."""
        return self.data.calib is not None

    @property
    def train(self) -> Split:
        """The training split; ask `can_train` first."""
        assert self.data.train is not None
        return self.data.train

    def check_fit(self, module: nn.Module) -> None:
        """Run two samples through the network and every task.

        Raises:
            InputError: inputs, outputs or targets do not fit each other.
        """
        split = next((s for s in (self.data.test, self.data.train, self.data.calib) if s is not None), None)
        if split is None:
            return
        batch = next(iter(split.batches([range(min(2, len(split)))], device=torch.device("cpu"))))
        with evaluating(module):
            try:
                outputs = module(*batch.inputs)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                shapes = ", ".join(str(tuple(item.shape)) for item in batch.inputs)
                raise InputError(
                    f"the network refuses a batch of the data ({shapes}): {str(error).splitlines()[0]}",
                    "check --input-shape and --preprocess, or the inputs in the task file",
                ) from error
            if self.data.classes is not None:
                width = self.tasks[0].select_output(outputs).shape[1]
                if width != self.data.classes:
                    raise InputError(
                        f"the data has {self.data.classes} classes, the network {width} outputs",
                        "give a folder for each class of the network, or map them in a task file (--task)",
                    )
            if split is not self.data.calib or self.data.calib_labelled:
                for task in self.tasks:
                    task.losses(outputs, batch.target)
                    task.count(outputs, batch.target)

    def evaluate(self, module: nn.Module) -> dict[str, Score]:
        """Every task's metric and mean loss on the whole test split, in eval mode, without gradients, in float32."""
        split = self.data.test
        assert split is not None
        scores = self.measure(module, split, range(len(split)), "Evaluating")
        if self._first:
            self._first = False
            self._warn_at_chance(scores)
        return scores

    def measure(
        self, module: nn.Module, split: Split, positions: Sequence[int], title: str | None = None
    ) -> dict[str, Score]:
        """Metric and mean loss of every task on some samples of a split; shared between processes, exactly added."""
        shared = len(positions) >= distributed.world()  # every process has a piece, or each does all the work
        size = min(self._batch_size(split), max(1, len(positions) // distributed.world()))
        mine = chunks(list(positions), size)
        if shared:
            mine = mine[distributed.rank() :: distributed.world()]
        sums: dict[str, Tensor] = {}
        losses = torch.zeros(len(self.tasks), 2, dtype=torch.float64, device=self.device)
        line = self.session.out.progress(title) if title else nullcontext()
        with placed(module, self.device), evaluating(module), line as bar:
            for number, batch in enumerate(split.batches(mine, device=self.device), 1):
                outputs = flatten_outputs(module(*batch.inputs))
                for row, task in enumerate(self.tasks):
                    counts = task.count(outputs, batch.target).to(self.device)
                    sums[task.name] = sums[task.name] + counts if task.name in sums else counts
                    found = task.losses(outputs, batch.target).double()
                    known = ~torch.isnan(found)
                    losses[row, 0] += torch.where(known, found, torch.zeros_like(found)).sum()
                    losses[row, 1] += known.sum()
                if bar is not None:
                    bar.update(number, len(mine))
        if shared:
            distributed.add_up_(losses)
            for counts in sums.values():
                distributed.add_up_(counts)
        return {
            task.name: Score(
                task.measure.value(sums[task.name].cpu()),
                float(losses[row, 0] / losses[row, 1]) if losses[row, 1] > 0 else float("nan"),
                len(positions),
            )
            for row, task in enumerate(self.tasks)
        }

    def calibration(self, n: int | None = None) -> Calibration:
        """Input batches for calibration: `n` images (default --calib-samples), the same on every pass, unaugmented.

        Raises:
            InputError: there are no calibration images.
        """
        split = self._calibration_split()
        positions = self._calibration_order(split)[: n or self.data.calib_samples]
        return Calibration(split, positions, self._batch_size(split), torch.device("cpu"))

    def calibration_batches(self, n: int | None = None) -> list[Batch]:
        """The same images as `calibration` with their targets, in memory, for methods that judge by the tasks.

        Raises:
            InputError: there are no calibration images.
        """
        split = self._calibration_split()
        return self._batches(split, self._calibration_order(split)[: n or self.data.calib_samples])

    def split_batches(self) -> tuple[list[Batch], list[Batch]]:
        """Images to choose by and others to judge the choice by, those that batch norms are judged by, in memory.

        Raises:
            InputError: there are no calibration images.
        """
        split = self._calibration_split()
        chosen_by, judged_by = self._norm_images(split)
        return self._batches(split, chosen_by), self._batches(split, judged_by)

    def reestimate_batchnorm_(
        self, module: nn.Module, *, teacher: Original | None = None, removed: Any = None
    ) -> dict[str, Any]:
        """Re-estimate the batch-norm statistics from calibration images; keep them only if the held-out loss falls.

        With labelled images the loss is the tasks'; without, the distance of the outputs to the `teacher`'s. The
        teacher (`original`), and what was `removed` from it, also tell how far the statistics have moved.

        Returns:
            The report's section: kept, reason, images, held_out, losses before and after.
        """
        split = self.data.calib
        if split is None:
            return {"kept": False, "reason": "there are no calibration images"}
        labelled = self.data.calib_labelled and bool(self.tasks)
        if not labelled and teacher is None:
            return {"kept": False, "reason": "neither labels nor the original model to judge the result by"}
        used, held_out = self._norm_images(split)
        if not held_out:
            return {"kept": False, "reason": f"{len(used)} image is too few: none is left to judge by"}

        def losses() -> dict[str, float]:
            if labelled:
                return {name: score.loss for name, score in self.measure(module, split, held_out).items()}
            assert teacher is not None
            return self._distance(module, teacher.network, split, held_out)

        statistics = Calibration(split, used, self._batch_size(split), self.device)
        beside = nn.Identity() if teacher is None else teacher.network
        with placed(module, self.device), placed(beside, self.device):
            original = None if teacher is None or _same_weights(module, teacher.network) else teacher
            record = reestimate_if_better_(module, statistics, losses, original=original, removed=removed)
        judged = "tasks' loss" if labelled else "distance to the original's outputs"
        return {**record, "held_out": len(held_out), "judged_by": judged}

    def original(self, network: nn.Module) -> Original:
        """A network before compression, for `reestimate_batchnorm_`; its statistics are taken once."""
        split = self.data.calib
        assert split is not None, "there are calibration images where batch norms are re-estimated"
        return Original(network, Calibration(split, self._norm_images(split)[0], self._batch_size(split), self.device))

    def rows(self, stage_scores: Mapping[str, Mapping[str, Score]]) -> tuple[TaskRow, ...]:
        """One row per task from the scores of the stages."""
        rows = []
        for task in self.tasks:
            found = {stage: scores[task.name] for stage, scores in stage_scores.items() if task.name in scores}
            metric: Any = task.metric
            rows.append(
                TaskRow(
                    task.name,
                    metric.name,
                    metric.unit,
                    metric.higher_is_better,
                    max((score.samples for score in found.values()), default=0),
                    {stage: score.value for stage, score in found.items()},
                    {stage: score.loss for stage, score in found.items()},
                )
            )
        return tuple(rows)

    def _calibration_split(self) -> Split:
        if self.data.calib is None:
            raise InputError("there are no calibration images", "pass --calib DIR, or --data with a train/ folder")
        return self.data.calib

    def _batches(self, split: Split, positions: Sequence[int]) -> list[Batch]:
        return list(split.batches(chunks(positions, self._batch_size(split)), device=self.device))

    def _norm_images(self, split: Split) -> tuple[list[int], list[int]]:
        """Positions that give statistics, and others that judge them."""
        order = self._calibration_order(split)
        used = min(self.data.calib_samples, max(1, len(order) * 3 // 4))
        return order[:used], order[used : used + HELD_OUT]

    def _calibration_order(self, split: Split) -> list[int]:
        return choose(len(split), len(split), split.labels, self.session.config.seed)

    def _batch_size(self, split: Split) -> int:
        probe = next(iter(split.batches([[0]], device=torch.device("cpu"))))
        values = sum(item.numel() for item in probe.inputs)
        return max(1, min(BATCH, _BATCH_VALUES // max(values, 1)))

    def _distance(
        self, module: nn.Module, teacher: nn.Module, split: Split, positions: Sequence[int]
    ) -> dict[str, float]:
        """Squared distance of each output to the teacher's, relative to the teacher's own square."""
        sums: dict[str, list[float]] = {}
        batches = Calibration(split, positions, self._batch_size(split), self.device)
        with placed(module, self.device), placed(teacher, self.device), evaluating(module), evaluating(teacher):
            for inputs in batches:
                theirs = flatten_outputs(teacher(*inputs))
                for name, output in flatten_outputs(module(*inputs)).items():
                    total = sums.setdefault(name, [0.0, 0.0])
                    total[0] += float((output - theirs[name]).double().square().sum())
                    total[1] += float(theirs[name].double().square().sum())
        return {name: error / (energy or 1.0) for name, (error, energy) in sums.items()}

    def _warn_at_chance(self, scores: Mapping[str, Score]) -> None:
        if self.data.classes is None or self.data.classes < 3:
            return
        value, chance = scores[self.tasks[0].name].value, 100 / self.data.classes
        if value < 2 * chance:
            self.session.warn(
                f"the original's accuracy is {value:.1f} %, chance is {chance:.1f} %: the preprocessing "
                "(--preprocess, --mean, --std) or the order of the classes is probably not the network's"
            )


class Calibration:
    """Input batches that can be gone through again and again, always the same."""

    def __init__(self, split: Split, positions: Sequence[int], batch: int, device: torch.device) -> None:
        self._split = split
        self._pieces = chunks(list(positions), batch)
        self._device = device

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def images(self) -> int:
        """Samples in all batches together."""
        return sum(map(len, self._pieces))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        batch: Batch
        for batch in self._split.batches(self._pieces, device=self._device):
            yield batch.inputs


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether nothing was changed yet: then the statistics have not moved either."""
    theirs = dict(other.named_parameters())
    return all(name in theirs and torch.equal(value, theirs[name]) for name, value in one.named_parameters())
