"""`compress report`: a finished run (or several) as text, JSON, Markdown or one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compress_cli import options as o
from compress_cli.atomic import atomic_path
from compress_cli.console import Out
from compress_cli.errors import UsageError

EPILOG = """Examples:

compress report runs/resnet50-magnitude-0.9

compress report runs/a runs/b --html compare.html

compress report run --markdown - > report.md"""

Runs = Annotated[
    list[str], typer.Argument(help="Run folders or report.json files.", show_default=False, metavar="RUN...")
]
Html = Annotated[Path | None, o.option("--html", help="Write one self-contained HTML file.", metavar="FILE")]
Markdown = Annotated[str | None, o.option("--markdown", help="Write Markdown; - for stdout.", metavar="FILE")]


def report(runs: Runs, html: Html = None, markdown: Markdown = None, json: o.Json = False) -> int:
    """Show what a run measured; several runs are put side by side."""
    from compress_cli.checking import read_report
    from compress_cli.render import markdown as md
    from compress_cli.render.text import render_report, side_by_side

    if json and markdown == "-":
        raise UsageError("--json and --markdown - both want stdout", "write the Markdown to a file")
    reports = [read_report(Path(run)) for run in runs]
    if html is not None:
        from compress_cli.render.html import render

        with atomic_path(html) as temporary:
            temporary.write_text(render(reports), encoding="utf-8")
    text = "\n".join(md.render(item) for item in reports)
    if markdown == "-":
        typer.echo(text, nl=False)
        return 0
    if markdown is not None:
        with atomic_path(markdown) as temporary:
            temporary.write_text(text, encoding="utf-8")
    out = Out(as_json=json)
    if json:
        out.result({"schema_version": 1, "ok": True, "runs": [item.to_dict() for item in reports]}, lambda _: None)
    elif html is None and markdown is None:
        if len(reports) > 1:
            out.result({}, lambda console: side_by_side(reports, console))
        else:
            out.result({}, lambda console: render_report(reports[0], console))
    else:
        out.info("Wrote " + " and ".join(str(path) for path in (html, markdown) if path is not None))
    return 0
