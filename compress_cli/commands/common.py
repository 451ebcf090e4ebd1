"""What every verb that makes a run does with its flags: split them, resolve them, run, render."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_cli.config import RunConfig, resolve
from compress_cli.console import Out
from compress_cli.errors import EXIT_GATE, EXIT_OK


@dataclass(frozen=True, slots=True)
class RunFlags:
    """Flags of one call: those of the run itself, and those of this call only (output form, resume)."""

    checkpoint: str
    settings: Mapping[str, Any]
    config_file: Path | None
    resume: bool
    overwrite: bool
    as_json: bool
    quiet: bool
    verbose: bool

    @classmethod
    def split(cls, flags: Mapping[str, Any]) -> RunFlags:
        """Take a command's arguments apart; `--no-X` becomes the setting `X = False`, unset flags stay None.

        `shared`, where there is one, holds the flags of `groups.takes`.
        """
        settings = {**flags, **flags.get("shared", {})}
        settings.pop("shared", None)
        control = {name: settings.pop(name, default) for name, default in _CONTROL.items()}
        for name in ("bench", "export"):
            if settings.pop(f"no_{name}", False):
                settings[name] = False
        return cls(
            checkpoint=settings.pop("checkpoint"),
            settings=settings,
            config_file=control["config"],
            resume=control["resume"],
            overwrite=control["overwrite"],
            as_json=control["json"],
            quiet=control["quiet"],
            verbose=control["verbose"],
        )


_CONTROL: dict[str, Any] = {
    "config": None,
    "resume": False,
    "overwrite": False,
    "json": False,
    "quiet": False,
    "verbose": False,
}


def run_verb(verb: str, flags: RunFlags) -> int:
    """Run the pipeline for one verb and return the exit code (0, or 1 when a gate failed)."""
    out = Out(as_json=flags.as_json, quiet=flags.quiet, verbose=flags.verbose)
    config = resolve(verb, flags.checkpoint, flags.settings, flags.config_file)

    return deliver(config, out, resume=flags.resume, overwrite=flags.overwrite)


def deliver(config: RunConfig, out: Out, *, resume: bool, overwrite: bool) -> int:
    """Run the pipeline, print its report, and return the exit code."""
    from compress_cli.pipeline import run  # torch starts here, after every cheap check of the flags
    from compress_cli.render.text import render_report
    from compress_cli.training.launch import joined

    with joined(config, out, resume=resume) as place:  # one of several processes under torchrun, else as given
        report = run(place.config, place.out, resume=place.resume, overwrite=overwrite)
        place.out.result(report.to_dict(), lambda console: render_report(report, console))
    return EXIT_OK if report.ok or config.exit_zero else EXIT_GATE
