"""`history.csv`: one line per epoch, for spreadsheets and plots."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress_cli.atomic import atomic_path


def write_history(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all epochs so far, whole or not at all; a column that some epoch lacks is empty there."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
