"""Write the results section of README.md from benchmarks/results/*.json; a missing file leaves its table out.

python benchmarks/tables.py           # rewrite README.md
python benchmarks/tables.py --check   # exit 1 if README.md is not what the results say
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.sections import cost, coverage, quality, training  # noqa: E402
from compress_cli.render.text import render_report  # noqa: E402
from compress_cli.report import RunReport  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
EXAMPLE_START, EXAMPLE_END = "<!-- example:start -->", "<!-- example:end -->"
START, END = "<!-- results:start -->", "<!-- results:end -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    wanted = rewritten(text)
    if arguments.check:
        return 0 if wanted == text else 1
    README.write_text(wanted, encoding="utf-8")
    return 0


def rewritten(text: str) -> str:
    """The README with today's results and the recorded example between its markers."""
    text = _between(text, START, END, "\n".join(sections()))
    return _between(text, EXAMPLE_START, EXAMPLE_END, example())


def _between(text: str, start: str, end: str, content: str) -> str:
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(end)
    return head + start + "\n\n" + content + "\n" + end + tail


def example() -> str:
    """The recorded run as a terminal of 80 columns showed it."""
    path = RESULTS / "example.json"
    if not path.exists():
        return ""
    report = RunReport.from_dict(json.loads(path.read_text(encoding="utf-8")))
    screen = io.StringIO()
    render_report(report, Console(file=screen, width=80, no_color=True, highlight=False))
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    return "\n".join(["    $ " + report.command, "", *("    " + line if line else "" for line in lines), ""])


def sections() -> Iterator[str]:
    """Every section whose results exist."""
    for name, section in SECTIONS.items():
        for path in sorted(RESULTS.glob(name)):
            yield from section(json.loads(path.read_text(encoding="utf-8")))
            yield ""


SECTIONS: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "oneshot.json": quality.oneshot,
    "selection.json": cost.selection,
    "packing_tiers.json": cost.packing,
    "packing_memory.json": cost.packing_memory,
    "tiers_cifar.json": quality.tiers,
    "channels_oneshot.json": quality.channels_oneshot,
    "channels_latency.json": cost.channels_latency,
    "finetune-*.json": training.finetuning,
    "learning_rates.json": training.rates,
    "cpu_layouts.json": cost.cpu_layouts,
    "int8_speed.json": cost.int8,
    "recovery.json": quality.recovery,
    "decompose_accuracy.json": quality.decompose_accuracy,
    "decompose_latency.json": cost.decompose_latency,
    "combined.json": quality.combined,
    "pagcp_coffee.json": training.multitask,
    "sweep_caches.json": cost.sweep_caches,
    "torchvision_corpus.json": coverage.corpus,
    "channels_coverage.json": coverage.channels,
}

if __name__ == "__main__":
    sys.exit(main())
