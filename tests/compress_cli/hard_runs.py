"""Running the command line in this process, and judging what it leaves behind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compress_cli.app import run
from tests.compress_cli.places import names

FINISHED = {".lock", "config.json", "log.txt", "model.pt", "plan.json", "report.html", "report.json", "state.json"}


@dataclass(frozen=True)
class Outcome:
    """What one call answered: exit code, the JSON document of stdout, stderr, and the run folder's files."""

    code: int
    document: dict[str, Any]
    stderr: str
    files: set[str]

    @property
    def message(self) -> str:
        """The error's message and fix."""
        return f"{self.document['error']['message']} | {self.document['error']['fix']}"


class Runner:
    """`compress prune FILE ... -o OUT --json` in this process, without export unless asked."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.out = folder / "out"
        self.capsys = capsys

    def prune(self, file: Path, *words: str, export: bool = False) -> Outcome:
        """Run it; stdout must be exactly one JSON document, whatever happens."""
        flags = ["--no-bench"] if export else ["--no-export"]
        self.capsys.readouterr()
        code = run(["prune", str(file), *words, *flags, "-o", str(self.out), "--json", "-q"])
        printed = self.capsys.readouterr()
        assert printed.out.count("\n") == 1, printed.out
        document = json.loads(printed.out)
        assert document["schema_version"] == 1
        assert document["ok"] is (code == 0)
        if code:
            assert document["error"]["code"] == code
            assert document["error"]["fix"], "an error says what to type"
        return Outcome(code, document, printed.err, set(names(self.out)) if self.out.exists() else set())

    def refused(self, file: Path, *words: str, code: int, says: str, export: bool = False) -> Outcome:
        """A run that must fail with this code and text, and leave no folder behind."""
        outcome = self.prune(file, *words, export=export)
        assert (outcome.code, outcome.files) == (code, set()), outcome
        assert says in outcome.message
        assert not self.out.exists()
        return outcome
