"""A `RunReport` as tables for a terminal of 80 columns or more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from compress_cli.render import words

if TYPE_CHECKING:
    from rich.console import Console

    from compress_cli.report import RunReport

LAYERS_SHOWN = 6


def render_report(report: RunReport, console: Console) -> None:
    """Print the whole report: summary, accuracy, layers, gates, then the sentences."""
    for rows in words.tables(report, LAYERS_SHOWN):
        console.print(table(rows))
    console.print()
    for line in words.sentences(report):
        console.print(line, markup=False)


def table(rows: words.Rows) -> Table:
    """Rows as a Rich table without lines."""
    drawn = Table(
        title=escape(rows.title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for index, column in enumerate(rows.columns):
        drawn.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for cells in rows.cells:
        drawn.add_row(*map(escape, cells))
    return drawn
