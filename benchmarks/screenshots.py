"""Pictures for the README from a finished run: the terminal as SVG, the HTML report as PNG (headless Chromium).

    python benchmarks/screenshots.py RUN --output docs

Chromium comes from the system (Debian: chromium); without it only the terminal picture is made.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console

from compress_cli.checking import read_report
from compress_cli.render.html import render
from compress_cli.render.text import render_report

COLUMNS = 80
SIZES = {"report": (1400, 1500), "report-phone": (400, 1500)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs"))
    parser.add_argument("--dark", action="store_true", help="the page in dark mode")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = read_report(arguments.run)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    render_report(report, console)
    console.save_svg(str(arguments.output / "terminal.svg"), title="compress", unique_id="compress")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("no Chromium: the report's picture is left out")
        return
    for name, (width, height) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "report.html"
            page.write_text(render([report]), encoding="utf-8")
            shoot(chromium, page, arguments.output / f"{name}.png", width, height, dark=arguments.dark)


def shoot(chromium: str, page: Path, picture: Path, width: int, height: int, *, dark: bool) -> None:
    """One screenshot; the profile is thrown away."""
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        if dark:
            flags.append("--blink-settings=preferredColorScheme=0")
        command = [chromium, *flags, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        command += [f"--screenshot={picture.resolve()}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main()
