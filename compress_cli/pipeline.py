"""One run: load, baseline, plan, apply, prove, recover or tune, save, export, verify, measure, report.

Each step is a function; `Job` and `Session` carry along what several of them need. Numbers in the report come from
the written files and from measurements, never from what a step says it did.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from compress_cli.atomic import atomic_path
from compress_cli.checking import read_report
from compress_cli.checkpoint import LoadedModel, as_stored, load, load_module, read_tensors, save
from compress_cli.config import RECOVERY_SCORE, RunConfig
from compress_cli.console import Out
from compress_cli.errors import CompressError, UnsupportedModelError, UsageError
from compress_cli.gates import with_gates
from compress_cli.methods import method_named
from compress_cli.quality import Quality, open_quality
from compress_cli.quantities import LIMIT_KINDS
from compress_cli.report import RunReport
from compress_cli.reporting import Facts, assemble, section_of
from compress_cli.scores import Scores
from compress_cli.session import Chain, Session, Shared, open_session
from compress_cli.shipping import (
    OnnxNetwork,
    Shipment,
    can_ship,
    checkpoint_size,
    export_original,
    original_size,
    ship,
    working_files,
)
from compress_cli.training.distributed import computed_by_first
from compress_cli.translate import counting_errors
from compress_cli.weight_forms import EXACT
from compress_cli.weight_names import file_names, stored_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from compress_cli.methods.base import Method, Plan
    from exporters.onnx_export import ExportResult


FEED_IMAGES = 128
"""Images that int8 and codebooks are calibrated on."""


@dataclass(frozen=True, slots=True)
class Job:
    """What all steps of one run share. `names`: the module's tensor names -> the file's."""

    session: Session
    method: Method
    loaded: LoadedModel
    names: Mapping[str, str]
    quality: Quality | None
    scores: Scores


def run(
    config: RunConfig,
    out: Out,
    *,
    resume: bool = False,
    overwrite: bool = False,
    shared: Shared | None = None,
    chain: Chain | None = None,
) -> RunReport:
    """Carry out one configuration in its run folder and return the report (also written as `report.json`).

    `shared`: what other runs on the same original have computed already (a sweep). `chain`: the run's place among the
    steps of a combination.

    Raises:
        CompressError: with the exit code of design.md section 4; no half-written file is left.
    """
    method = method_named(config.method)
    method.check(config)
    opened = open_session(config, out, resume=resume, overwrite=overwrite, shared=shared, chain=chain)
    with opened as session, working_files(session):
        if session.recorded("done"):
            out.info(f"{session.folder.path} holds the finished run: nothing is left to do")
            return _judged_anew(session, read_report(session.folder.path))
        job = _start(session, method)
        session.folder.write_json("config.json", config.to_dict())
        try:
            report = _run(job)
        except CompressError:
            session.folder.give_up()
            raise
        _write_report(session, report)
        return report


def _judged_anew(session: Session, report: RunReport) -> RunReport:
    """A finished run's report with the limits that are asked now; its method's own gates stay.

    Raises:
        UsageError: something is asked that the finished run left out.
    """
    config = session.config
    for name, asked, later in (("export", config.export, "compress export"), ("bench", config.bench, "compress bench")):
        if asked and not report.config.get(name, True):
            raise UsageError(
                f"{session.folder.path} holds a finished run that was made with --no-{name}",
                f"repeat that flag, use {later} on its model, or run anew with --overwrite",
            )
    own = tuple(gate for gate in report.gates if gate.name not in LIMIT_KINDS)
    judged = with_gates(report, session.limits)
    judged = dataclasses.replace(judged, gates=(*judged.gates, *own))
    if judged.gates != report.gates:
        _write_report(session, judged)
    return judged


def _write_report(session: Session, report: RunReport) -> None:
    from compress_cli.render.html import render

    session.folder.write_json("report.json", report.to_dict())
    with atomic_path(session.folder.file("report.html")) as temporary:
        temporary.write_text(render([report]), encoding="utf-8")
    session.folder.finish_stage("done", True)


def dry_run(config: RunConfig, out: Out) -> Plan:
    """The same path up to the plan; nothing is changed or written."""
    method = method_named(config.method)
    method.check(config)
    job = _start(Session(config, out, None, resume=False), method)
    return method.plan(job.session, job.loaded, job.quality)


def prime(config: RunConfig, out: Out, shared: Shared) -> dict[str, Any]:
    """Compute what a combination compares its result with, once; returns the report's section on the checkpoint.

    Raises:
        CompressError: the network cannot be loaded, evaluated or exported.
    """
    session = Session(config, out, None, resume=False, shared=shared)
    job = _start(session, method_named(config.method))
    loaded, quality, module = job.loaded, job.quality, job.loaded.module
    shared.once("complexity", lambda: _complexity(job, module))
    if quality is not None and quality.can_evaluate and module is not None:
        shared.once("original scores", lambda: quality.evaluate(module))
    if can_ship(session, loaded):
        original = shared.once("original onnx", lambda: export_original(session, loaded))
        shared.once("original size", lambda: original_size(original))
    shared.once("checkpoint size", lambda: checkpoint_size(loaded))
    trains = bool(config.data or config.task) and config.epochs != 0
    if module is not None and trains and (config.distill or config.lr is None):  # towards it, or as far as it is away
        shared.once("original network", lambda: copy.deepcopy(module))
    return section_of(loaded)


def _start(session: Session, method: Method) -> Job:
    loaded = _load(session, method)
    torch.manual_seed(session.config.seed)
    with session.stage("data"):
        quality = session.baseline.once("quality", lambda: open_quality(session, loaded))
    return Job(session, method, loaded, file_names(loaded), quality, Scores(session, quality))


def _load(session: Session, method: Method) -> LoadedModel:
    config = session.config
    with session.stage("load", f"Reading {config.checkpoint}"):
        loaded = load(
            config.checkpoint,
            arch=config.arch,
            arch_args=config.arch_args,
            input_shape=config.input_shape,
            inputs=config.input,
            trust_pickle=config.trust_pickle,
            seed=config.seed,
        )
    for note in loaded.notes:
        session.note(note)
    if loaded.architecture is not None and config.arch is None:
        session.out.info(f"Architecture: {loaded.architecture}")
    if method.needs_module and (loaded.module is None or loaded.example_inputs is None):
        raise UnsupportedModelError(
            f"--method {config.method} works on the network itself, but {loaded.missing_reason}",
            "pass --arch (and --input-shape), or use --method magnitude, which needs the tensors only",
        )
    return loaded


def _run(job: Job) -> RunReport:
    session, method, loaded = job.session, job.method, job.loaded
    job.scores.take("original", loaded.module)
    shared = session.shared
    facts = Facts(complexity_before=shared.once("complexity", lambda: _complexity(job, loaded.module)))
    original = None
    if can_ship(session, loaded):
        original = session.baseline.once("original onnx", lambda: export_original(session, loaded))

    with session.stage("plan", "Planning"):
        plan = computed_by_first(lambda: method.plan(session, loaded, job.quality))
    for warning in method.warnings(plan):
        session.warn(warning)
    session.folder.write_json("plan.json", plan.to_dict())

    teacher = copy.deepcopy(loaded.module) if _needs_teacher(job) else None
    if not _prunes_while_training(job):
        with session.stage("apply"):
            method.apply_(loaded, plan)
        job.scores.take("pruned", loaded.module)
    if teacher is not None and method.needs_module:
        with session.stage("prove", "Proving the change"):
            facts = dataclasses.replace(facts, proof=method.prove(teacher, loaded, plan))
    if job.quality is not None and loaded.module is not None:
        facts = _improve(job, job.quality, loaded.module, plan, teacher, facts)
        plan = method.settle(session, loaded, plan)
        session.folder.write_json("plan.json", plan.to_dict())
    return _finish(job, plan, facts, original)


def _prunes_while_training(job: Job) -> bool:
    """Whether the trainer makes the zeros step by step (--schedule); then the plan is not applied before."""
    config, quality = job.session.config, job.quality
    return config.schedule != "one-shot" and quality is not None and quality.can_train and config.epochs != 0


def _needs_teacher(job: Job) -> bool:
    config, quality = job.session.config, job.quality
    anew = quality is not None and quality.can_recalibrate and bool(config.calib_samples)
    wanted = config.distill or bool(config.calib) or anew
    return job.loaded.module is not None and (job.method.needs_module or wanted)


def _complexity(job: Job, module: nn.Module | None) -> Any | None:
    if module is None or job.loaded.example_inputs is None:
        return None
    from profilers.complexity import measure

    with job.session.stage("count"), counting_errors():
        return measure(module, job.loaded.example_inputs)


def _improve(
    job: Job, quality: Quality, module: nn.Module, plan: Any, teacher: nn.Module | None, facts: Facts
) -> Facts:
    """Bring accuracy back with what there is: closed form from images, batch norms, training."""
    session, config = job.session, job.session.config
    if not _prunes_while_training(job):  # else nothing is missing yet that could be restored
        facts = _restore(job, quality, module, plan, teacher, facts)
    if quality.can_train and config.epochs != 0:
        from compress_cli.training import finetune
        from compress_cli.training.orthogonal import factored_layers

        constraint = job.method.constraint(module, plan)
        factored = factored_layers((*job.loaded.plans, plan.to_dict()))
        with session.stage("train", "Fine-tuning"):
            record = finetune(
                module,
                quality,
                session=session,
                constraint=constraint,
                plan=plan,
                teacher=session.baseline.known("original network", teacher),
                factored=factored,
            )
        facts = dataclasses.replace(facts, training=record)
    return facts


def _restore(
    job: Job, quality: Quality, module: nn.Module, plan: Any, teacher: nn.Module | None, facts: Facts
) -> Facts:
    """Recovery from the images of --calib; batch norms alone for what cannot be traced, and for other images."""
    session = job.session
    if session.config.calib and teacher is not None:
        try:
            recovery = _recover(job, quality, module, plan, teacher)
        except UnsupportedModelError as error:
            if session.config.score == RECOVERY_SCORE:
                raise
            session.warn(f"nothing is recovered from --calib but batch norms: {error}; {error.fix}")
        else:
            job.scores.take("recovered", module)
            return dataclasses.replace(facts, recovery=recovery)
    if session.config.calib_samples and quality.can_recalibrate:
        with session.stage("batch norms", "Re-estimating batch-norm statistics"):
            removed = job.method.removed(module, plan)
            before = None if teacher is None else quality.original(teacher)
            record = quality.reestimate_batchnorm_(module, teacher=before, removed=removed)
        if record.get("kept"):
            job.scores.take("recalibrated", module)
        return dataclasses.replace(facts, batchnorm=record)
    return facts


def _recover(job: Job, quality: Quality, module: nn.Module, plan: Any, teacher: nn.Module) -> dict[str, Any]:
    from compress_cli.recovering import recovery_errors
    from compress_cli.recovery import recover

    session = job.session
    batches = list(quality.calibration())
    with (
        recovery_errors(),
        session.stage("recover", "Recovering in closed form"),
        session.out.progress("Recovering") as bar,
    ):
        record = recover(
            teacher,
            module,
            batches,
            correspondence=job.method.removed(module, plan),
            seed=session.config.seed,
            on_step=bar.update,
        )
    return record.to_dict()


def _finish(job: Job, plan: Any, facts: Facts, original: ExportResult | None) -> RunReport:
    """Write `model.pt`, read it back, and measure only what was read."""
    with job.session.stage("save"):
        _save(job, plan)
    module = None
    if job.loaded.module is not None:
        with job.session.stage("load"):
            module = _reload(job)
        job.loaded.forget()
    job.scores.take("final", module)
    if facts.training is not None:
        job.scores.warn_of_harm()
    facts = dataclasses.replace(facts, complexity_after=_complexity(job, module))
    shipment = Shipment()
    if original is not None and module is not None and job.session.last:
        shipment = ship(job.session, job.loaded, module, original, _calibration_images(job))
        if job.session.config.weights not in EXACT:
            job.scores.take("shipped", OnnxNetwork(job.session.folder.file("model.onnx")))
    return assemble(job.session, job.method, job.loaded, plan, job.scores, facts, shipment)


def _calibration_images(job: Job) -> list[torch.Tensor]:
    """Some batches for forms of weights whose choice depends on the inputs."""
    if job.quality is None or not job.quality.can_recalibrate or job.session.config.weights in EXACT:
        return []
    return [inputs[0] for inputs in job.quality.calibration(FEED_IMAGES)]


def _save(job: Job, plan: Any) -> None:
    session, loaded = job.session, job.loaded
    tensors = loaded.tensors if loaded.module is None else stored_tensors(loaded, job.names)
    save(
        session.folder.file("model.pt"),
        tensors=as_stored(tensors, loaded.dtypes),
        architecture=loaded.architecture,
        plans=(*loaded.plans, plan.to_dict()),
        inputs=loaded.inputs,
        metadata=loaded.metadata,
        report={"method": session.config.method, "source_sha256": loaded.sha256},
        safetensors=session.folder.file("model.safetensors") if session.config.safetensors else None,
    )


def _reload(job: Job) -> nn.Module:
    """The network as a user of `model.pt` gets it."""
    path = job.session.folder.file("model.pt")
    if job.loaded.architecture is not None:
        return load_module(str(path), confirmed=job.loaded.architecture)
    module = copy.deepcopy(job.loaded.module)  # a trusted pickle: nothing but the module itself can rebuild it
    assert module is not None
    stored = read_tensors(path).tensors
    home = {file_name: name for name, file_name in job.names.items()}
    module.load_state_dict({home.get(name, name): tensor for name, tensor in stored.items()})
    return module.float().eval()
