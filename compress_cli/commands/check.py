"""`compress check`: a run or an ONNX file against limits; made for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress_cli import options as o
from compress_cli.atomic import atomic_path
from compress_cli.config import gates_table
from compress_cli.console import Out
from compress_cli.errors import EXIT_GATE, EXIT_OK, UsageError
from compress_cli.gates import Rule, rules_from_table
from compress_cli.quantities import LIMIT_KINDS, parse_limit

if TYPE_CHECKING:
    from rich.console import Console

    from compress_cli.checking import Checked

EPILOG = """Examples:

compress check runs/resnet50-magnitude-0.9 --max-size 25% --max-drop 0.5

compress check model.onnx --baseline git:main:model.onnx --max-size 110% --max-latency 110% --markdown comment.md

compress check run --junit gates.xml        (limits from \\[tool.compress.gates])"""

Target = Annotated[
    str, typer.Argument(help="Run folder, report.json, or an ONNX file.", show_default=False, metavar="TARGET")
]
Baseline = Annotated[
    str | None,
    o.option("--baseline", help="What % limits refer to: a run, a report.json, an ONNX file, or git:REV:PATH."),
]
Markdown = Annotated[Path | None, o.option("--markdown", help="Write a pull-request comment here.", metavar="FILE")]
JUnit = Annotated[Path | None, o.option("--junit", help="Write JUnit XML here.", metavar="FILE")]


def check(
    target: Target,
    max_params: o.MaxParams = None,
    max_flops: o.MaxFlops = None,
    max_size: o.MaxSize = None,
    max_drop: o.MaxDrop = None,
    max_latency: o.MaxLatency = None,
    baseline: Baseline = None,
    threads: o.Threads = None,
    markdown: Markdown = None,
    junit: JUnit = None,
    exit_zero: o.ExitZero = None,
    config: o.ConfigFile = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> int:
    """Compare what a run measured with limits from flags or \\[tool.compress.gates]; exit code 1 when one fails."""
    given = {
        "max-params": max_params,
        "max-flops": max_flops,
        "max-size": max_size,
        "max-drop": max_drop,
        "max-latency": max_latency,
    }
    rules = _rules(given, config)
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads} is below 1", "pass --threads 1 or more")

    from compress_cli import checking
    from compress_cli.render import gates as render

    checked = checking.check(target, rules, baseline, threads=threads or 1)
    for path, text in ((markdown, render.markdown), (junit, render.junit)):
        if path is not None:
            with atomic_path(path) as temporary:
                temporary.write_text(text(checked), encoding="utf-8")
    out = Out(as_json=json, quiet=quiet, verbose=verbose)
    out.result(checked.to_dict(), lambda console: _show(checked, console, everything=verbose))
    return EXIT_OK if checked.ok or exit_zero else EXIT_GATE


def _rules(given: dict[str, str | None], config: Path | None) -> tuple[Rule, ...]:
    """Limits of the file, replaced by those of the flags."""
    table, where = gates_table(config)
    rules = {rule.limit.name: rule for rule in rules_from_table(table, where)}
    for name, text in given.items():
        if text is not None:
            limit = parse_limit(f"--{name}", LIMIT_KINDS[name], text)
            rules[limit.name] = Rule(limit, None, rules[limit.name].message if limit.name in rules else "")
    return tuple(rules.values())


def _show(checked: Checked, console: Console, *, everything: bool) -> None:
    from compress_cli.render import words
    from compress_cli.render.text import table

    shown = tuple(gate for gate in checked.gates if everything or gate.passed is not True)
    if shown:
        console.print(table(words.gates(shown)))
    for gate in shown:
        if gate.message and gate.passed is not True:
            console.print(f"{gate.name}: {gate.message}", markup=False)
    passed = sum(gate.passed is True for gate in checked.gates)
    console.print(f"{passed} of {len(checked.gates)} gates passed: {checked.target}", markup=False)
