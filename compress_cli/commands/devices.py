"""`compress devices`: the phones, boards and servers that latency can be predicted for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress_cli import options as o
from compress_cli.console import Out
from compress_cli.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = """Examples:

compress devices

compress devices snapdragon

compress devices --all --json"""

Words = Annotated[list[str] | None, typer.Argument(help="Only devices whose name has these words.", show_default=False)]
All = Annotated[bool, o.option("--all", help="Also devices that the model does not follow well.")]


def devices(words: Words = None, all: All = False, json: o.Json = False) -> int:
    """List devices with threads and the error of predictions for them (networks left out of the fit).

    A device that is not listed can be described: mobile:core=cortex-a76,clock=2.4,cores=4,bandwidth=17.
    """
    from profilers.devices.catalog import devices as catalog

    wanted = {word.lower() for text in words or () for word in text.replace("-", " ").split()}
    matching = [device for device in catalog() if wanted <= set(device.key.split("-"))]
    if not matching:
        raise UsageError(f"no device has the words {' '.join(sorted(wanted))}", "compress devices lists them all")
    shown = matching if all else [device for device in matching if device.reliable]
    document = {
        "schema_version": 1,
        "ok": True,
        "command": "devices",
        "devices": [device.to_dict() for device in shown],
        "hidden": len(matching) - len(shown),
        "source": "public ncnn benchmark table (BSD 3-Clause); errors from leave-one-network-out cross-validation",
    }
    Out(as_json=json).result(document, lambda console: _render(document, console))
    return 0


def _render(document: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("device", overflow="fold")
    for column in ("cores", "GHz", "threads", "error", "1 in 10"):
        table.add_column(column, no_wrap=True, justify="right")
    for name in dict.fromkeys(row["device"] for row in document["devices"]):
        rows = [row for row in document["devices"] if row["device"] == name]
        threads = ", ".join(str(row["threads"]) for row in rows)
        errors = [max(row[key] for row in rows) for key in ("median_error", "p90_error")]
        table.add_row(name, rows[0]["family"], f"{rows[0]['ghz']:g}", threads, *[f"{error:.0%}" for error in errors])
    console.print(table)
    if document["hidden"]:
        console.print(f"{document['hidden']} runs that the model does not follow well are hidden: --all", markup=False)
    console.print(
        "Use as --target mobile:NAME; some words of the name are enough. error: median, and exceeded by 1 in 10."
    )
    console.print(f"Source: {document['source']}", markup=False)
