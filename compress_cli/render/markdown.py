"""A `RunReport` as Markdown, for a pull request or a wiki."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress_cli.render import words

if TYPE_CHECKING:
    from compress_cli.report import RunReport

LAYERS_SHOWN = 12


def render(report: RunReport) -> str:
    """The whole report; tables first, then the sentences as a list."""
    first, *others = words.tables(report, LAYERS_SHOWN)
    parts = [f"# {_escape(first.title)}", "\n".join(f"- {line}" for line in words.headline(report)), table(first)]
    parts += [f"## {_escape(rows.title)}\n\n{table(rows)}" for rows in others]
    parts += ["## Remarks", "\n".join(f"- {_escape(line)}" for line in words.sentences(report))]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(rows: words.Rows) -> str:
    """Rows as a Markdown table; the first column is text, the others are numbers."""
    head = "| " + " | ".join(map(_escape, rows.columns)) + " |"
    rule = "| --- " + "| ---: " * (len(rows.columns) - 1) + "|"
    return "\n".join([head, rule, *("| " + " | ".join(map(_escape, cells)) + " |" for cells in rows.cells)])


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
