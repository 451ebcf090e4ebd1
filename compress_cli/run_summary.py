"""What is in a run folder: its report, or how far an unfinished run came."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_cli.errors import InputError
from compress_cli.report import RunReport


@dataclass(frozen=True, slots=True)
class RunInspection:
    """A run folder: the report of a finished run, else None and the stages that are done."""

    path: str
    report: RunReport | None
    stages: tuple[str, ...]
    command: str
    files: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema_version": 1,
            "ok": True,
            "command": "inspect",
            "kind": "run_folder",
            "path": self.path,
            "finished": self.report is not None,
            "stages": list(self.stages),
            "files": self.files,
            "report": self.report.to_dict() if self.report else None,
        }


def inspect_run(folder: Path) -> RunInspection:
    """Read a run folder.

    Raises:
        InputError: its files are damaged.
    """
    report = _read(folder / "report.json")
    config = _read(folder / "config.json") or {}
    state = _read(folder / "state.json") or {}
    try:
        parsed = RunReport.from_dict(report) if report is not None else None
        stages = tuple(state.get("stages", {}))
    except (TypeError, KeyError, AttributeError) as error:
        raise _damaged(folder / "report.json", error) from error
    words = [str(config.get("verb", "prune")), str(config.get("checkpoint", ""))]
    files = {item.name: item.stat().st_size for item in sorted(folder.iterdir()) if item.is_file()}
    return RunInspection(str(folder), parsed, stages, " ".join(words), files)


def _read(path: Path) -> dict[str, Any] | None:
    """One JSON document of the folder; None when it is not there."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(document, dict):
        raise _damaged(path, TypeError("not a JSON object"))
    return document


def _damaged(path: Path, error: BaseException) -> InputError:
    return InputError(
        f"{path} cannot be read: {error}", "run again with --overwrite, or inspect model.pt in the folder"
    )
