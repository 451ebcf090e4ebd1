"""The one training loop: every method, mode and number of processes goes through `Trainer`.

All randomness (order, augmentation, dropout) is derived from (seed, epoch, step, sample), and the learning rate is a
function of the step: a saved state holds weights, optimiser, masks, averages and the step, and a run that goes on from
it equals one that was never interrupted, bit for bit on the same hardware.
"""

from __future__ import annotations

import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress_cli.console import format_seconds
from compress_cli.data.augment import mix
from compress_cli.errors import EXIT_VERIFICATION, CompressError, InputError, UsageError
from compress_cli.training import distributed
from compress_cli.training.averaging import Average
from compress_cli.training.compiling import compiled_or_not
from compress_cli.training.history import write_history
from compress_cli.training.interrupts import Pending, deferred_interrupts
from compress_cli.training.numerics import Numerics
from compress_cli.training.objective import Objective
from compress_cli.training.optimizers import make_optimizer, step_plan
from compress_cli.training.probing import encoders_kept_orthogonal, feature_points, has_unused_parameters
from compress_cli.training.saving import STATE, load_state, save_state
from compress_cli.training.sparse import Dense
from compress_cli.training.telemetry import Curves
from profilers.modes import modes_kept

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compress_cli.console import ProgressLine
    from compress_cli.data import Batch
    from compress_cli.quality import Quality, Score
    from compress_cli.session import Session
    from compress_cli.training.recipe import Recipe


class TrainingDiverged(CompressError):
    """The loss is no number any more."""

    exit_code = EXIT_VERIFICATION


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_steps: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """One training run of a module that is already on its device.

    Args:
        factored: names of the layers that are pairs of an encoder and a decoder, for `Recipe.orthogonal`.

    Raises:
        InputError: fewer than two training images.
    """

    def __init__(
        self,
        module: nn.Module,
        quality: Quality,
        recipe: Recipe,
        session: Session,
        *,
        sparsifier: Dense,
        teacher: nn.Module | None,
        factored: Sequence[str] = (),
    ) -> None:
        self.module = module
        self.quality = quality
        self.recipe = recipe
        self.session = session
        self.sparsifier = sparsifier
        self.split = quality.train
        self.batch, self.steps_per_epoch = step_plan(recipe, len(self.split))
        self.steps = self.steps_per_epoch * recipe.epochs
        self.numerics = Numerics(quality.device, recipe.precision)
        self.numerics.prepare_(module, lambda: self._sample(2), teacher)
        points = feature_points(module, teacher, recipe, self._sample, session)
        encoders = encoders_kept_orthogonal(module, factored, recipe, session)
        self.objective = Objective.of(quality.tasks, recipe, teacher, points, encoders)
        self.numerics.try_(module, self._sample_loss)
        self.network = self.numerics.parallel(
            module, lambda: has_unused_parameters(module, self.objective, self._sample)
        )
        self.compiled = False
        if session.config.compile:
            self._compile()
        self.optimizer = make_optimizer(module, recipe, quality.device)
        self.curves = Curves(None, 0)
        self.average = Average(module, recipe.ema) if recipe.ema is not None else None
        self.progress = Progress()
        self.finished = False
        self._recent = torch.zeros((), device=quality.device)
        self._unseen = 0

    def run(self) -> dict[str, Any]:
        """Train to the end, or from a saved state to the end; the module then has its final weights, in eval mode.

        Raises:
            KeyboardInterrupt: stopped from outside, after the state was saved.
            TrainingDiverged: the loss became NaN or infinite.
            InputError: a full disk or an image that is gone; the last saved state is whole.
        """
        if self.session.resume:
            self._resume()
        if not self.finished:
            self.curves = Curves(self._curves_folder(), self.progress.step)
            with deferred_interrupts() as pending, self._bar() as bar, self.objective.watched():
                try:
                    while self.progress.step < self.steps:
                        self._epoch(pending, bar)
                finally:
                    self.curves.close()
            self._finish()
        self.numerics.release_(self.module)
        return self.record()

    def record(self) -> dict[str, Any]:
        """The report's section."""
        done = self.progress
        images = done.step * self.batch
        return {
            **self.recipe.to_dict(),
            "batch_size": self.batch,
            "steps": done.step,
            "steps_per_epoch": self.steps_per_epoch,
            "sparsity": self.sparsifier.describe(),
            "device": str(self.quality.device),
            "processes": distributed.world(),
            "precision": self.numerics.name,
            "compiled": self.compiled,
            "seconds": done.seconds,
            "images_per_second": images / done.seconds if done.seconds > 0 else None,
            "history": done.history,
        }

    def _epoch(self, pending: Pending, bar: ProgressLine | None) -> None:
        """The rest of the epoch that the next step belongs to."""
        epoch, first = divmod(self.progress.step, self.steps_per_epoch)
        pieces = self._pieces(epoch)[first * self.recipe.accumulate :]
        batches = self.split.batches(pieces, device=self.quality.device, epoch=epoch, seed=self.recipe.seed)
        self.module.train()
        begin = saved = time.perf_counter()
        saved_step = self.progress.step
        while self.progress.step < (epoch + 1) * self.steps_per_epoch:
            self._step(batches)
            last = self.progress.step % self.steps_per_epoch == 0
            if last:
                self._look(self.progress.step)  # waits for what the device still has to do
            now = time.perf_counter()
            self.progress.seconds += now - begin
            begin = now
            if last:
                break
            if self.progress.step % self.numerics.look_every:
                continue
            self._show(bar)
            stop = distributed.any_true(pending.asked, self.quality.device)
            often = 0 < self.recipe.checkpoint_steps <= self.progress.step - saved_step
            if stop or often or now - saved > 60 * self.recipe.checkpoint_minutes:
                self._check_finite()
                self.save()
                saved = begin = time.perf_counter()
                saved_step = self.progress.step
            if stop:
                raise KeyboardInterrupt
        self._close_epoch(epoch, bar)
        if distributed.any_true(pending.asked, self.quality.device):
            self.save()
            raise KeyboardInterrupt

    def _pieces(self, epoch: int) -> list[list[int]]:
        """Positions of this process's part of each (accumulated part of a) step of an epoch."""
        generator = torch.Generator().manual_seed(mix(self.recipe.seed, epoch, 0))
        order = torch.randperm(len(self.split), generator=generator)
        parts = order[: self.steps_per_epoch * self.batch].view(self.steps_per_epoch * self.recipe.accumulate, -1)
        return [part[distributed.rank() :: distributed.world()].tolist() for part in parts]

    def _step(self, batches: Any) -> None:
        step = self.progress.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(step, self.steps)
        self.sparsifier.before_forward_(step)
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(self.recipe.accumulate):
            with self.numerics.last_part(self.network, part == self.recipe.accumulate - 1):
                batch = next(batches)
                # after the batch was read: reading without worker processes draws from the same generator
                torch.manual_seed(mix(self.recipe.seed, step, 3, part, distributed.rank()))
                self._recent += self._backward(batch)
        self._unseen += 1
        if (step + 1) % self.numerics.look_every == 0:
            self._look(step + 1)
        self.numerics.unscale_(self.optimizer)
        self.sparsifier.after_backward_()
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip_norm)
        self.numerics.step(self.optimizer)
        self.sparsifier.after_step_(self.optimizer, step)
        if self.average is not None:
            self.average.update_(self.module)
        self.progress.step += 1
        self.progress.loss_steps += 1

    def _look(self, made: int) -> None:
        """Fetch the losses of the last of `made` steps from the device; on a GPU only now and then, as it waits."""
        loss = float(self._recent)
        self._recent.zero_()
        if not math.isfinite(loss):
            raise self._diverged(loss)
        self.progress.loss_sum += loss
        if self._unseen:
            self.curves.point("loss", loss / self._unseen, made)
        self._unseen = 0

    def _backward(self, batch: Batch) -> Tensor:
        with self.numerics.autocast():
            loss = self.objective(self.network, self.numerics.batch(batch))
        loss = loss / self.recipe.accumulate
        self.numerics.backward(loss)
        return loss.detach()

    def _bar(self) -> AbstractContextManager[ProgressLine | None]:
        """A bar on a terminal; elsewhere the lines of the epochs are enough, unless there are few."""
        if self.recipe.epochs > 3 and not sys.stderr.isatty():
            return nullcontext()
        return self.session.out.progress("Fine-tuning")

    def _sample(self, images: int = 1) -> Batch:
        return next(iter(self.split.batches([list(range(images))], device=self.quality.device)))

    def _sample_loss(self) -> Tensor:
        with self.objective.watched(), self.numerics.autocast():
            return self.objective(self.module, self.numerics.batch(self._sample(2)))

    def _compile(self) -> None:
        """Let `network` be compiled; not where hooks look into it, which a compiler may leave out."""
        if self.objective.points is not None:
            self.session.warn("--compile: features are compared inside the network, which is trained without it")
            return
        piece = list(range(self.batch // self.recipe.accumulate))[distributed.rank() :: distributed.world()]
        batch = next(iter(self.split.batches([piece], device=self.quality.device)))

        def loss_of(network: nn.Module) -> Tensor:
            with self.numerics.autocast():
                return self.objective(network, self.numerics.batch(batch))

        with modes_kept(self.module):
            self.module.train()
            device = self.quality.device
            self.network, self.compiled = compiled_or_not(self.network, loss_of, self.session.warn, device)

    def _curves_folder(self) -> str | None:
        """Where the first process writes TensorBoard files."""
        return self.session.config.tensorboard if distributed.rank() == 0 else None

    def _close_epoch(self, epoch: int, bar: ProgressLine | None) -> None:
        done = self.progress
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": done.step,
            "loss": done.loss_sum / max(1, done.loss_steps),
            "lr": self.recipe.rate_at(done.step - 1, self.steps),
            "seconds": done.seconds,
            "images_per_second": done.step * self.batch / done.seconds,
        }
        self._check_finite()
        scores = self._evaluate() if epoch + 1 < self.recipe.epochs else {}
        row |= {f"{name}": score.value for name, score in scores.items()}
        done.history.append(row)
        if distributed.rank() == 0:
            write_history(self.session.folder.file("history.csv"), done.history)
        self.curves.epoch(row)
        done.loss_sum, done.loss_steps = 0.0, 0
        if epoch + 1 < self.recipe.epochs:
            self.save()
        left = done.seconds / done.step * (self.steps - done.step)
        words = "".join(f", {name} {score.value:.2f}" for name, score in scores.items())
        self.session.out.info(
            f"  epoch {epoch + 1}/{self.recipe.epochs}: loss {row['loss']:.4f}{words}, "
            f"{row['images_per_second']:.0f} images/s, {format_seconds(left)} left"
        )
        self._show(bar)

    def _evaluate(self) -> dict[str, Score]:
        """The metric after an epoch, for the history only: nothing is chosen by it. Only where a test is cheap."""
        split = self.quality.data.test
        if split is None or len(split) > len(self.split) // 2:
            return {}
        distributed.broadcast_(self.module.buffers())  # batch-norm statistics are each process's own
        with self.sparsifier.deployed():
            return self.quality.measure(self.module, split, range(len(split)))

    def _finish(self) -> None:
        if self.average is not None:
            self.module.load_state_dict(self.average.tensors)
        self.sparsifier.finish_()
        everything = (*self.module.parameters(), *self.module.buffers())
        distributed.broadcast_(everything)  # every process scores what is saved
        self.module.eval()
        self.finished = True
        self.save()

    def save(self) -> None:
        """Write the state of the run; only the first of several processes does."""
        if distributed.rank() == 0:
            save_state(
                self.session.folder.file(STATE),
                {
                    "recipe": self.recipe.to_dict(),
                    "finished": self.finished,
                    "progress": {name: getattr(self.progress, name) for name in Progress.__dataclass_fields__},
                    "weights": self.module.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.numerics.state_dict(),
                    "sparsifier": self.sparsifier.state_dict(),
                    "average": None if self.average is None else self.average.state_dict(),
                },
            )

    def _resume(self) -> None:
        state = load_state(self.session.folder.file(STATE))
        if state is None:
            return
        recipe = {name: value for name, value in self.recipe.to_dict().items() if name != "reasons"}
        different = [name for name, value in recipe.items() if state["recipe"].get(name) != value]
        if different:
            raise UsageError(
                f"--resume with another training recipe: {', '.join(different)} changed",
                "repeat the first run's flags, or start again with --overwrite",
            )
        try:
            self.module.load_state_dict(state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.numerics.load_state_dict(state["scaler"])
            self.sparsifier.load_state_dict(state["sparsifier"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"the saved training state does not fit the network: {str(error).splitlines()[0]}",
                "start the training again with --overwrite",
            ) from error
        self.progress = Progress(**state["progress"])
        self.finished = state["finished"]
        self.session.out.info(f"  going on at step {self.progress.step} of {self.steps}")
        if self.finished:
            self.module.eval()

    def _check_finite(self) -> None:
        """Never save weights that are no numbers."""
        for tensor in self.module.state_dict().values():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise self._diverged(float("nan"))

    def _diverged(self, loss: float) -> TrainingDiverged:
        step, path = self.progress.step, self.session.folder.file(STATE)
        rate = self.recipe.rate_at(step, self.steps)
        where = f"the last good state is {path}" if path.exists() else "no state had been saved yet"
        return TrainingDiverged(
            f"training diverged: the loss is {loss} at step {step + 1} of {self.steps}, "
            f"at learning rate {rate:.3g}; {where}",
            f"start again with --overwrite and a smaller --lr, such as {self.recipe.lr / 5:.2g}",
        )

    def _show(self, bar: ProgressLine | None) -> None:
        if bar is None:
            return
        done = self.progress
        mean = done.loss_sum / done.loss_steps if done.loss_steps else 0.0
        extra = f"loss {mean:.4f}, lr {self.recipe.rate_at(done.step, self.steps):.2g}" if done.loss_steps else ""
        bar.update(done.step, self.steps, extra)
