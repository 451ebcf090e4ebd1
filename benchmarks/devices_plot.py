"""Draw `results/devices.json` as `results/devices.svg`: how many predictions are within which error.

python benchmarks/devices_plot.py
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH, HEIGHT, LEFT, TOP, PANEL = 940, 400, 56, 56, 400
LIMIT = 0.6
COLOURS = {"1 thread": "#1b6ca8", "2-4 threads": "#2a9d5c", "5-8 threads": "#d98e04", "more threads": "#b5382a"}
PANELS = (("networks_out", "networks left out of the fit"), ("devices_out", "devices left out of the fit"))


def x_of(error: float, left: float) -> float:
    return left + min(error, LIMIT) / LIMIT * (PANEL - 40)


def y_of(share: float) -> float:
    return TOP + (1 - share) * (HEIGHT - TOP - 60)


def panel(curves: dict[str, list[float]], statistics: dict, title: str, left: float) -> list[str]:
    parts = [f'<text x="{left}" y="{TOP - 14}" font-weight="bold">{escape(title)}</text>']
    for tick in range(0, 61, 10):
        x = x_of(tick / 100, left)
        parts.append(f'<line x1="{x:.1f}" y1="{y_of(0)}" x2="{x:.1f}" y2="{y_of(1)}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{y_of(0) + 16}" text-anchor="middle">{tick} %</text>')
    for tick in range(0, 101, 25):
        y = y_of(tick / 100)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{x_of(LIMIT, left)}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick} %</text>')
    for row, (name, errors) in enumerate(curves.items()):
        points = " ".join(f"{x_of(e, left):.1f},{y_of(i / (len(errors) - 1)):.1f}" for i, e in enumerate(errors))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        facts = statistics[name]
        label = f"{name}: median {facts['median']:.1%}, 9 of 10 within {facts['p90']:.0%}"
        y = y_of(0) - 64 + 16 * row
        parts.append(f'<text x="{left + 130}" y="{y}" fill="{COLOURS[name]}">{escape(label)}</text>')
    return parts


def main() -> None:
    results = json.loads((RESULTS / "devices.json").read_text(encoding="utf-8"))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">Predicted latency: share of predictions within an error '
        f"({results['runs']} runs, {results['devices']} devices, 26 networks)</text>",
    ]
    for place, (name, title) in enumerate(PANELS):
        left = LEFT + place * (PANEL + 70)
        parts += panel(results["curves"][name], results["statistics"][name], title, left)
    (RESULTS / "devices.svg").write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
