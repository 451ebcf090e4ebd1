"""README.md says what the recorded results and the files of the project say."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tables import README, rewritten
from compress_cli.app import VERBS
from compress_cli.errors import EXIT_BUG, EXIT_GATE, EXIT_INPUT, EXIT_INTERRUPTED, EXIT_USAGE, EXIT_VERIFICATION

ROOT = Path(__file__).resolve().parents[1]


def test_the_tables_are_those_of_the_recorded_results() -> None:
    text = README.read_text(encoding="utf-8")
    assert rewritten(text) == text, "run python benchmarks/tables.py"


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "    make test " in README.read_text()


def test_every_verb_and_exit_code_is_explained() -> None:
    text = README.read_text()
    assert [verb for verb in VERBS if f"`{verb}`" not in text] == []
    codes = (0, EXIT_GATE, EXIT_USAGE, EXIT_INPUT, EXIT_VERIFICATION, EXIT_BUG, EXIT_INTERRUPTED)
    assert [code for code in codes if f"| {code} |" not in text] == []
