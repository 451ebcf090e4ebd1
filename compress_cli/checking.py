"""`compress check`: what a finished run or an ONNX file measures, against limits and against a baseline.

A run folder is read, never measured again. For two ONNX files sizes come from the disk and latency from one
interleaved measurement in this process. A baseline may be a run, a file, or either of them at a git revision.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress_cli.errors import InputError, UsageError
from compress_cli.gates import Found, Rule, failed, judge, latency_found, measured, predicted_found
from compress_cli.report import Gate, RunReport


@dataclass(frozen=True, slots=True)
class Checked:
    """The gates of one check and what they were judged on."""

    target: str
    baseline: str
    gates: tuple[Gate, ...]
    latency: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether no gate of level `error` failed or stayed unchecked."""
        return not failed(self.gates)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        rows = [{name: getattr(gate, name) for name in gate.__dataclass_fields__} for gate in self.gates]
        return {
            "schema_version": 1,
            "ok": self.ok,
            "command": "check",
            "target": self.target,
            "baseline": self.baseline,
            "gates": rows,
            "latency": self.latency,
        }


def check(target: str, rules: Sequence[Rule], baseline: str | None = None, *, threads: int = 1) -> Checked:
    """Judge a run folder, a `report.json` or an ONNX file.

    Args:
        target: what is checked.
        rules: the limits; relative ones refer to the run's own original, or to `baseline`.
        baseline: a run, a `report.json` or an ONNX file; `git:REV:PATH` takes the file at a revision.
        threads: of ONNX Runtime when latency must be measured.

    Raises:
        UsageError: no rules.
        InputError: target or baseline cannot be read.
    """
    if not rules:
        raise UsageError(
            "there is no limit to check",
            "pass for example --max-size 8MB, or write [tool.compress.gates] in pyproject.toml",
        )
    with _resolved(baseline) as base:
        rows = _predictions(rules, Path(target), base, threads)
        wanted = {rule.limit.name for rule in rules if rule.level != "off" and not rule.limit.target}
        if Path(target).suffix == ".onnx":
            found, latency = _of_onnx(Path(target), base, wanted, threads)
        else:
            found, latency = _of_report(read_report(Path(target)), base), None
    gates = tuple(
        judge(rule, predicted_found(rows, rule.limit) or found.get(rule.limit.name, Found())) for rule in rules
    )
    gates = tuple(sorted(gates, key=lambda gate: (gate.passed is True, gate.level != "error")))
    return Checked(target, baseline or "", gates, latency)


def _predictions(rules: Sequence[Rule], target: Path, base: Path | None, threads: int) -> list[dict[str, Any]]:
    """Predicted latencies for the limits on devices, from the ONNX files; a run's own where it has them."""
    from compress_cli.predicted import predictions

    limits = [rule.limit for rule in rules if rule.level != "off" and rule.limit.target]
    if not limits:
        return []
    if target.suffix == ".onnx":
        return predictions(limits, _onnx_of(base), target, threads)
    report = read_report(target)
    known = {row["target"]: dict(row) for row in report.predictions}
    file = (target if target.is_dir() else target.parent) / "model.onnx"
    if base is None and all(limit.target in known for limit in limits):
        return list(known.values())
    if not file.is_file():
        raise InputError(f"{file} does not exist, which the prediction needs", "drop --max-latency")
    return predictions(limits, _onnx_of(base), file, threads)


def read_report(path: Path) -> RunReport:
    """The report of a run folder, or a `report.json` itself.

    Raises:
        InputError: it is not there, or not a report.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return RunReport.from_dict(document)
    except FileNotFoundError as error:
        hint = "check the path"
        if path.is_dir():
            begun = any((path / name).exists() for name in ("config.json", "state.json"))
            hint = (
                "the run has not finished: continue it with --resume" if begun else "pass the folder of a run (-o DIR)"
            )
        raise InputError(f"{file} does not exist", hint) from error
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        if _is_checkpoint(file):
            raise InputError(
                f"{file} is a checkpoint, which holds no measurements",
                f"prune or decompose it and check the run's folder, or: compress export {file} -o model.onnx",
            ) from error
        raise InputError(
            f"{file} is not a report of compress: {error}", "pass a run folder or its report.json"
        ) from error


def _is_checkpoint(file: Path) -> bool:
    from compress_cli.checkpoint.sniff import Kind, sniff

    try:
        return sniff(file) not in (Kind.UNKNOWN, Kind.EMPTY, Kind.ONNX)
    except InputError:
        return False


def _of_report(report: RunReport, base: Path | None) -> dict[str, Found]:
    found = measured(report)
    if base is None:
        return found
    if base.suffix == ".onnx":
        size = float(base.stat().st_size)
        return {**found, "--max-size": replace(found["--max-size"], original=size)}
    other = measured(read_report(base))
    return {name: Found(other[name].value, value.value, value.low) for name, value in found.items()}


def _of_onnx(
    file: Path, base: Path | None, wanted: set[str], threads: int
) -> tuple[dict[str, Found], dict[str, Any] | None]:
    if not file.is_file():
        raise InputError(f"{file} does not exist", "check the path of the ONNX file")
    original = _onnx_of(base)
    found = {"--max-size": Found(None if original is None else float(original.stat().st_size), file.stat().st_size)}
    latency = None
    if "--max-latency" in wanted:
        latency = _measure(original, file, threads)
        found["--max-latency"] = latency_found(latency)
    return found, latency


def _onnx_of(base: Path | None) -> Path | None:
    """The ONNX file that a baseline stands for: itself, or the `model.onnx` of a run folder."""
    if base is None or base.suffix == ".onnx":
        return base
    file = (base if base.is_dir() else base.parent) / "model.onnx"
    if not file.exists():
        raise InputError(f"the baseline {base} holds no model.onnx", "pass the ONNX file itself as --baseline")
    return file


def _measure(original: Path | None, file: Path, threads: int) -> dict[str, Any]:
    from profilers.errors import MeasurementFailed
    from profilers.latency import compare

    try:
        return dict(compare(original, file, threads=threads).to_dict())
    except MeasurementFailed as error:
        raise InputError(f"the latency of {file} cannot be measured: {error}", "drop --max-latency") from error


@contextmanager
def _resolved(baseline: str | None) -> Iterator[Path | None]:
    """The baseline as a path; a file at a git revision is written to a temporary folder."""
    if baseline is None:
        yield None
        return
    if not baseline.startswith("git:"):
        path = Path(baseline)
        if not path.exists():
            raise InputError(
                f"the baseline {baseline} does not exist", "pass a run folder, a report.json or an ONNX file"
            )
        yield path
        return
    revision, colon, name = baseline.removeprefix("git:").rpartition(":")
    if not colon or not revision or not name:
        raise UsageError(f"--baseline {baseline!r} is not git:REV:PATH", "for example git:main:models/report.json")
    with tempfile.TemporaryDirectory(prefix="compress-baseline-") as folder:
        target = Path(folder) / Path(name).name
        target.write_bytes(_from_git(revision, name, baseline))
        yield target


def _from_git(revision: str, name: str, baseline: str) -> bytes:
    # `./` makes git take the path from the current folder, as every other path here
    path = name if name.startswith(("./", "../", "/")) else f"./{name}"
    try:
        result = subprocess.run(["git", "show", f"{revision}:{path}"], capture_output=True, check=False)
    except FileNotFoundError as error:
        raise InputError(f"--baseline {baseline}: git is not installed", "pass a file or a run instead") from error
    if result.returncode:
        reason = result.stderr.decode(errors="replace").strip().splitlines()
        raise InputError(
            f"--baseline {baseline}: {reason[-1] if reason else 'git show failed'}",
            "check the revision and the path (in CI: fetch enough history, for example fetch-depth: 0)",
        )
    return result.stdout
