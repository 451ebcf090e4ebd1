"""A `RunReport` (or several, side by side) as one HTML file without network references.

Bars are HTML, curves are matplotlib SVG whose black becomes `currentColor`, so that both follow light and dark mode.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from compress_cli.quantities import format_bytes, format_count
from compress_cli.render import words

if TYPE_CHECKING:
    from compress_cli.report import RunReport
    from compress_cli.sweeping import Result

INK = "#010203"  # drawn in this colour, shown in the page's text colour
SERIES = ("#2f7ed8", "#d9822b", "#3a9d5d", "#9b59b6")
BARS_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Bar:
    """One horizontal bar: `share` of the longest one in its chart, 0 to 1."""

    label: str
    text: str
    share: float
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A named group of bars."""

    title: str
    bars: tuple[Bar, ...]


def render(reports: Sequence[RunReport]) -> str:
    """The page; several reports are compared at its top."""
    return _page(
        runs=[_context(report) for report in reports],
        comparison=words.comparison(reports) if len(reports) > 1 else None,
        heading=f"{len(reports)} runs",
        title="compress: " + (words.title(reports[0]) if len(reports) == 1 else f"{len(reports)} runs"),
    )


def render_sweep(results: Sequence[Result]) -> str:
    """The page of a sweep: the table of all points and the trade-off plot."""
    return _page(
        runs=[],
        comparison=words.sweep(results),
        tradeoff=Markup(tradeoff(results)),
        heading="Sweep",
        title="compress: sweep",
    )


def _page(**context: Any) -> str:
    environment = Environment(
        loader=PackageLoader("compress_cli.render", "templates"),
        autoescape=select_autoescape(["html", "j2"], default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(**context)


def _context(report: RunReport) -> dict[str, Any]:
    first, *others = words.tables(report, BARS_SHOWN)
    return {
        "title": first.title,
        "folder": report.folder,
        "ok": report.ok,
        "gated": bool(report.gates),
        "headline": words.headline(report),
        "summary": first,
        "tables": others,
        "charts": [chart for chart in (_sizes(report), _latencies(report), _macs(report), _densities(report)) if chart],
        "curves": Markup(curves(report.training)) if report.training and report.training.get("history") else "",
        "decomposition": Markup(_decomposition(report)),
        "sentences": list(words.sentences(report)),
        "skipped": report.skipped,
        "environment": {name: value for name, value in report.environment.items() if value not in (None, "", [], {})},
        "command": report.command,
        "config": json.dumps(dict(report.config), indent=1, default=str),
    }


def _decomposition(report: RunReport) -> str:
    """The picture of every layer's error against its size that a decomposition leaves in its folder; else nothing."""
    path = Path(report.folder) / "decomposition.svg"
    return path.read_text(encoding="utf-8") if report.folder and path.is_file() else ""


def _sizes(report: RunReport) -> Chart | None:
    names = {
        "original onnx": "original ONNX",
        "onnx dense": "compressed, dense weights",
        "onnx": "compressed ONNX (model.onnx)",
    }
    rows = [(names[item.role], item) for item in report.artifacts if item.role in names]
    rows.sort(key=lambda row: list(names.values()).index(row[0]))
    bars = [(label, float(item.bytes), format_bytes(item.bytes), item.role) for label, item in rows]
    return _chart("Size on disk", bars)


def _latencies(report: RunReport) -> Chart | None:
    rows = report.latency["latencies"] if report.latency is not None else ()
    bars = [(row["profile"], row["p50_ms"], f"{row['p50_ms']:.2f} ms", row["profile"]) for row in rows]
    return _chart("Latency, p50 in ONNX Runtime", bars)


def _macs(report: RunReport) -> Chart | None:
    before, after = report.complexity_before, report.complexity_after
    if before is None or after is None:
        return None
    bars = [
        ("original", before["macs"], format_count(before["macs"]), "original"),
        ("compressed, dense", after["macs"], format_count(after["macs"]), "compressed"),
        ("compressed, zeros skipped", after["sparse_macs"], format_count(after["sparse_macs"]), "theory"),
    ]
    return _chart("MACs of one image", bars)


def _densities(report: RunReport) -> Chart | None:
    bars = [(row.name, row.density, f"{row.density:.1%}", "compressed") for row in report.layers[:BARS_SHOWN]]
    more = f", first {BARS_SHOWN} of {len(report.layers)}" if len(report.layers) > BARS_SHOWN else ""
    return _chart(f"Share of each layer's weights that is left{more}", bars, full=1.0)


def _chart(title: str, rows: Sequence[tuple[str, float, str, str]], full: float | None = None) -> Chart | None:
    if not rows:
        return None
    longest = full or max(value for _, value, _, _ in rows) or 1.0
    kinds = {"original onnx": "original", "original": "original", "theory": "theory"}
    return Chart(
        title,
        tuple(
            Bar(label, text, min(value / longest, 1.0), kinds.get(kind, "compressed"))
            for label, value, text, kind in rows
        ),
    )


def curves(training: Mapping[str, Any]) -> str:
    """Training loss and metrics over epochs as SVG."""
    history = training["history"]
    columns = [name for name in history[0] if name != "epoch" and isinstance(history[0][name], (int, float))]
    shown = [name for name in columns if "loss" in name or "metric" in name or "score" in name or name == "sparsity"][
        :4
    ]
    if not shown:
        return ""
    figure, axes = _figure(len(shown))
    for axis, name, colour in zip(axes, shown, SERIES, strict=False):
        points = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
        axis.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3)
        axis.set_title(name, color=INK, fontsize=10)
        axis.set_xlabel("epoch", color=INK)
    return _svg(figure)


def tradeoff(results: Sequence[Result]) -> str:
    """Metric (or MACs, without data) against the ONNX file's size, one series per method; SVG, empty without sizes."""
    measured = [result for result in results if not result.error and result.onnx_bytes is not None]
    by_metric = all(result.metric is not None for result in measured)
    points = [(r, r.onnx_bytes / 1e6, r.metric if by_metric else (r.macs or 0) / 1e6) for r in measured if r.onnx_bytes]
    if not points:
        return ""
    figure, (axis,) = _figure(1)
    methods = list(dict.fromkeys(result.point.method for result, _, _ in points))
    for method, colour in zip(methods, SERIES * len(methods), strict=False):
        mine = [(x, y) for result, x, y in points if result.point.method == method]
        axis.scatter([x for x, _ in mine], [y for _, y in mine], color=colour, label=method, s=24)
    front = sorted((x, y) for result, x, y in points if result.pareto)
    if len(front) > 1:
        axis.plot(*zip(*front, strict=True), color=INK, linewidth=1, linestyle="--", label="nothing else is better")
    axis.set_xlabel("ONNX file, MB", color=INK)
    axis.set_ylabel("metric" if by_metric else "MMACs", color=INK)
    axis.legend(frameon=False, labelcolor=INK, fontsize=8)
    return _svg(figure)


def _figure(columns: int) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * columns + 0.6, 2.8), layout="constrained")
    figure.patch.set_alpha(0)
    axes = [figure.add_subplot(1, columns, index + 1) for index in range(columns)]
    for axis in axes:
        axis.patch.set_alpha(0)
        axis.tick_params(colors=INK, labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
        axis.grid(alpha=0.2, color=INK)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "compress"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'class="plot"', drawing, count=1)
