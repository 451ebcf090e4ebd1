"""Targets of a latency: where a model is measured or what it is predicted for (design.md, `--target`).

cloud-cpu            ONNX Runtime on this machine's CPU (also `local`)
cloud-gpu            ONNX Runtime on this machine's GPU (CUDA)
tensorrt, openvino,  ONNX Runtime with that execution provider, where it is installed
coreml, qnn
mobile:DEVICE        predicted from the public table (also `model:DEVICE`); `compress devices` lists them
ssh:HOST             ONNX Runtime on another machine
adb[:SERIAL]         an Android phone, with --binary
qemu:FOLDER          emulated ARM64: correctness and instruction count, no time
ncnn, mnn, litert,   that mobile runtime on this machine, when installed (also mobile:ncnn, ...); mnn-sparse: MNN
executorch           with the kernels for zeros that its converter offers
NAME                 a command of `[targets.NAME]` in compress.toml
"""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress_cli.errors import UsageError

if TYPE_CHECKING:
    from profilers.runners.result import Runner

RUNTIMES = ("ncnn", "mnn", "mnn-sparse", "litert", "executorch")
PROVIDERS = {
    "cloud-cpu": "CPUExecutionProvider",
    "cloud-gpu": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "qnn": "QNNExecutionProvider",
}
KINDS = {
    **dict.fromkeys((*PROVIDERS, *RUNTIMES), "measured on this host"),
    "mobile": "predicted",
    "ssh": "measured on a device",
    "adb": "measured on a device",
    "qemu": "emulated",
    "command": "measured on a device",
}
ALIASES = {"local": "cloud-cpu", "model": "mobile", "cpu": "cloud-cpu", "gpu": "cloud-gpu", "cuda": "cloud-gpu"}
NEEDS_ARGUMENT = {"mobile": "DEVICE (compress devices lists them)", "ssh": "HOST", "qemu": "FOLDER"}


@dataclass(frozen=True, slots=True)
class Target:
    """One target: its kind, what follows the colon, and the command of a declared one."""

    text: str
    kind: str
    argument: str = ""
    command: tuple[str, ...] = ()
    label: str = ""


def parse_targets(texts: Sequence[str], config: Path | None = None) -> tuple[Target, ...]:
    """Targets in the order given, duplicates dropped; commas separate several in one text.

    Raises:
        UsageError: an unknown target, or one without what it needs.
    """
    declared = declared_targets(config)
    found = [_parse(text, declared) for text in _split(texts)]
    return tuple(dict.fromkeys(found))


def _split(texts: Sequence[str]) -> list[str]:
    """Pieces between commas; a piece such as `clock=2.4` belongs to the description of the device before it."""
    pieces: list[str] = []
    for text in texts:
        for piece in filter(None, (part.strip() for part in text.split(","))):
            if pieces and "=" in piece and ":" not in piece:
                pieces[-1] += f",{piece}"
            else:
                pieces.append(piece)
    return pieces


def _parse(text: str, declared: Mapping[str, Target]) -> Target:
    name, _, argument = text.partition(":")
    kind = ALIASES.get(name, name)
    if text in declared:
        return declared[text]
    if kind == "mobile" and argument in RUNTIMES:
        kind, argument = argument, ""
    if kind not in KINDS or kind == "command":
        valid = [*(key for key in KINDS if key != "command"), *declared]
        close = difflib.get_close_matches(name, valid, 3)
        hint = f"did you mean {', '.join(close)}?" if close else f"targets: {', '.join(valid)}"
        raise UsageError(f"--target {text!r} is unknown", f"{hint} [targets.NAME] in compress.toml declares more")
    if kind in NEEDS_ARGUMENT and not argument:
        raise UsageError(f"--target {text!r} lacks its argument", f"write {name}:{NEEDS_ARGUMENT[kind]}")
    if kind in (*PROVIDERS, *RUNTIMES) and argument:
        raise UsageError(f"--target {text!r} takes no argument", f"write {name}")
    return Target(text, kind, argument, label=KINDS[kind])


def declared_targets(config: Path | None = None) -> dict[str, Target]:
    """Targets of `[targets.NAME]` tables (`command = [...]`, optional `label`) in the configuration file.

    Raises:
        UsageError: the file or a table cannot be read.
    """
    path = config or Path("compress.toml")
    if not path.is_file():
        if config is not None:
            raise UsageError(f"{path} is not there", "check --config")
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no valid TOML: {error}", "correct the file") from error
    if path.name == "pyproject.toml":
        document = document.get("tool", {}).get("compress", {})
    tables = document.get("targets", {})
    if not isinstance(tables, dict):
        raise UsageError(f"`targets` in {path} is no table", "write [targets.NAME] and command = [...]")
    return {name: _declared(name, table, path) for name, table in tables.items()}


def _declared(name: str, table: Any, path: Path) -> Target:
    from profilers.runners.command import fill

    command = table.get("command") if isinstance(table, dict) else None
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        raise UsageError(f"[targets.{name}] in {path} has no command", 'write command = ["program", "{model}"]')
    try:
        fill(command, {})
    except ValueError as error:
        raise UsageError(f"[targets.{name}] in {path}: {error}", 'write command = ["program", "{model}"]') from error
    return Target(name, "command", command=tuple(command), label=str(table.get("label", KINDS["command"])))


def runner_for(target: Target, *, binary: Path | None, input_shape: str = "") -> Runner:
    """The runner of a target that is not measured in this process.

    Raises:
        UsageError: adb without a program to run.
    """
    if target.kind == "ssh":
        from profilers.runners.ort_process import SshRunner

        return SshRunner(target.argument)
    if target.kind == "adb":
        from profilers.runners.adb import BENCHMARKS, AdbRunner

        if binary is None or not binary.is_file():
            names = " or ".join(BENCHMARKS)
            raise UsageError("--target adb needs a benchmark program built for the phone", f"--binary PATH ({names})")
        return AdbRunner(target.argument, binary)
    if target.kind == "qemu":
        from profilers.runners.qemu import QemuRunner

        return QemuRunner(Path(target.argument), sys.executable)
    from profilers.runners.command import CommandRunner

    return CommandRunner(target.text, target.command, target.label, input_shape)
