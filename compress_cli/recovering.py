"""What `compress recover` does: two checkpoints and unlabelled images -> the compressed one, recovered.

The compressed network may come from this tool or from any other: zeros are masks, a layer `X` that became `X.0`, `X.1`
is a factored one, and removed channels are read from the plan in our own files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_cli.errors import InputError, UnsupportedModelError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from compress_cli.checkpoint import LoadedModel
    from compress_cli.config import RunConfig
    from compress_cli.console import Out
    from compress_cli.recovery import Correspondence, RecoveryRecord
    from compress_cli.session import Session


SYNTHETIC = "synthetic"
"""The value of --calib that stands for images made up from the original's batch norms."""


def target_file(checkpoint: str, output: str | None, *, overwrite: bool) -> Path:
    """Where the result goes: -o, or NAME-recovered.pt beside nothing else.

    Raises:
        UsageError: the file is there already, or is one of the inputs.
    """
    target = Path(output or f"{Path(checkpoint).name.split('.')[0]}-recovered.pt")
    if target.is_dir():
        target = target / "model.pt"
    if target.exists() and target.resolve() == Path(checkpoint).resolve():
        raise UsageError(f"-o {target} is the compressed checkpoint itself", "choose another file")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} is there already", "add --overwrite, or choose another file with -o")
    return target


def run_recover(config: RunConfig, original: str, target: Path, out: Out) -> dict[str, Any]:
    """Read both networks, recover, write the result, and return the command's document.

    Raises:
        CompressError: with the exit code of design.md section 4; nothing is written then.
    """
    from compress_cli.quality import open_quality
    from compress_cli.recovery import recover
    from compress_cli.session import Session
    from compress_cli.weight_names import file_names

    made_up = config.calib == SYNTHETIC
    if made_up:
        config = dataclasses.replace(config, calib=None)
    session = Session(config, out, None, resume=False)
    compressed, reference = _load(session, config.checkpoint), _load(session, original)
    names = file_names(compressed)
    module, dense = _module(compressed), _module(reference)
    quality = open_quality(session, compressed)
    if not made_up and (quality is None or not quality.can_recalibrate):
        raise UsageError(
            "there are no images to recover from",
            "pass --calib DIR, --data with a train/ folder, or --calib synthetic to make some up from batch norms",
        )
    scores: dict[str, Any] = {}
    evaluates = quality is not None and quality.can_evaluate
    if quality is not None and evaluates:
        scores["original"], scores["compressed"] = quality.evaluate(dense), quality.evaluate(module)
    batches = _made_up(reference, config, out) if made_up else list(quality.calibration())  # type: ignore[union-attr]
    with recovery_errors(), out.progress("Recovering") as bar:
        record = recover(
            dense,
            module,
            batches,
            correspondence=_correspondence(compressed),
            seed=config.seed,
            on_step=bar.update,
        )
    if quality is not None and evaluates:
        scores["recovered"] = quality.evaluate(module)
    _save(compressed, names, reference, record, target)
    for note in (*compressed.notes, *session.notes):
        out.detail(note)
    return {**_document(config, original, target, record, scores), "images": "synthetic" if made_up else "given"}


def _made_up(reference: LoadedModel, config: RunConfig, out: Out) -> Sequence[Any]:
    """Images from the statistics of the original's batch norms.

    Raises:
        UnsupportedModelError: it has none, or other inputs than one image.
    """
    from compress_cli.recovery.synthetic import synthesise

    assert reference.module is not None
    assert reference.example_inputs is not None
    with recovery_errors(), out.progress("Making up images") as bar:
        return synthesise(reference.module, reference.example_inputs, seed=config.seed, on_step=bar.update)


def _load(session: Session, path: str) -> LoadedModel:
    from compress_cli.checkpoint import load

    config = session.config
    session.out.info(f"Reading {path}")
    return load(
        path,
        arch=config.arch,
        arch_args=config.arch_args,
        input_shape=config.input_shape,
        inputs=config.input,
        trust_pickle=config.trust_pickle,
        seed=config.seed,
    )


def _module(loaded: LoadedModel) -> nn.Module:
    if loaded.module is None or loaded.example_inputs is None:
        raise UnsupportedModelError(
            f"{loaded.path} cannot be run: {loaded.missing_reason}", "pass --arch (and --input-shape)"
        )
    return loaded.module


def _correspondence(compressed: LoadedModel) -> Correspondence:
    """What the plans in a file of ours say about channels; for other files zeros and structure must do."""
    from compress_cli.recovery import Correspondence

    cut = [plan for plan in compressed.plans if plan.get("method") == "channels"]
    if not cut:
        return Correspondence()
    if len(cut) > 1:
        raise UnsupportedModelError(
            f"{compressed.path} lost channels in {len(cut)} steps", "recover after each step instead"
        )
    from pruners.channels.plan_type import ChannelsPlan

    return Correspondence(keep=ChannelsPlan.from_dict(cut[0]).keep)


@contextmanager
def recovery_errors() -> Iterator[None]:
    """What recovery raises about a user's networks and images, with what to do."""
    from compress_cli import recovery
    from compress_cli.recovery.synthetic import CannotSynthesise

    try:
        yield
    except recovery.NoImages as error:
        raise InputError(str(error), "point --calib at more images") from error
    except recovery.DoNotMatch as error:
        raise InputError(str(error), "--original must be the network that was compressed") from error
    except CannotSynthesise as error:
        raise UnsupportedModelError(str(error), "pass real images with --calib DIR") from error
    except recovery.CannotTrace as error:
        raise UnsupportedModelError(str(error), "fine-tune it instead: compress finetune") from error


def _save(
    compressed: LoadedModel, names: Mapping[str, str], reference: LoadedModel, record: RecoveryRecord, target: Path
) -> None:
    from compress_cli.checkpoint import as_stored, save
    from compress_cli.weight_names import stored_tensors

    summary = {"chosen": record.chosen, "before": record.before, "after": record.after, "images": record.images}
    save(
        target,
        tensors=as_stored(stored_tensors(compressed, names), compressed.dtypes),
        architecture=compressed.architecture,
        plans=compressed.plans,
        inputs=compressed.inputs,
        metadata=compressed.metadata,
        report={"recovery": summary, "source_sha256": compressed.sha256, "original_sha256": reference.sha256},
    )


def _document(
    config: RunConfig, original: str, target: Path, record: RecoveryRecord, scores: Mapping[str, Any]
) -> dict[str, Any]:
    found = {
        stage: {name: {"value": score.value, "loss": score.loss, "samples": score.samples} for name, score in s.items()}
        for stage, s in scores.items()
    }
    return {
        "schema_version": 1,
        "ok": True,
        "command": "recover",
        "checkpoint": config.checkpoint,
        "original": original,
        "file": str(target),
        "scores": found,
        "recovery": record.to_dict(),
    }
