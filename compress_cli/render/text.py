"""A `RunReport` as tables for a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from compress_cli.render import words

if TYPE_CHECKING:
    from rich.console import Console

    from compress_cli.report import RunReport

LAYERS_SHOWN = 6
GAP = 2
"""Characters between columns."""


def render_report(report: RunReport, console: Console) -> None:
    """Print the whole report: summary, accuracy, layers, gates, then the sentences."""
    for rows in words.tables(report, LAYERS_SHOWN):
        console.print(table(rows))
    console.print()
    for line in words.sentences(report):
        console.print(line, markup=False)


def side_by_side(reports: Sequence[RunReport], console: Console) -> None:
    """Print the main numbers of several runs, as many beside each other as the terminal is wide for."""
    for rows in fitting(words.comparison(reports), console.width):
        console.print(table(rows))


def fitting(rows: words.Rows, width: int) -> Iterator[words.Rows]:
    """Tables of at most so many characters with the same labels; one column of numbers each at least."""
    sizes = [max(map(cell_len, column)) + GAP for column in zip(rows.columns, *rows.cells, strict=True)]
    first = 1
    while first < len(sizes):
        last = first + 1
        while last < len(sizes) and sizes[0] + sum(sizes[first : last + 1]) - GAP <= width:
            last += 1
        parts = [(cells[0], *cells[first:last]) for cells in (rows.columns, *rows.cells)]
        yield words.Rows(rows.title, parts[0], tuple(parts[1:]))
        first = last


def table(rows: words.Rows) -> Table:
    """Rows as a Rich table without lines."""
    drawn = Table(
        title=escape(rows.title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, GAP, 0, 0),
    )
    for index, column in enumerate(rows.columns):
        drawn.add_column(escape(column), justify="left" if index == 0 else "right", overflow="fold")
    for cells in rows.cells:
        drawn.add_row(*map(escape, cells))
    return drawn
