"""Draw what recovery gives from how many images: `results/recovery.json` as `results/recovery.svg`.

python -m benchmarks.recovery_plot
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH, HEIGHT, LEFT, TOP = 640, 400, 60, 48
RIGHT, BOTTOM = WIDTH - 30, HEIGHT - 56
COLOURS = ("#1b6ca8", "#b5382a", "#2a9d5c", "#d98e04")
COUNTED = re.compile(r"(?P<row>.+), (?P<count>\d+) images")


def main() -> None:
    rows = json.loads((RESULTS / "recovery.json").read_text(encoding="utf-8"))["rows"]
    (RESULTS / "recovery.svg").write_text(draw(curves(rows)), encoding="utf-8")


def curves(rows: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Row without its number of images -> (images, top-1), ascending."""
    found: dict[str, dict[int, float]] = {}
    for key, row in rows.items():
        match = COUNTED.fullmatch(key)
        if match:
            found.setdefault(match["row"], {})[int(match["count"])] = row["top1"]
    for name, points in found.items():
        if name in rows:
            points[1000] = rows[name]["top1"]
    return {name: sorted(points.items()) for name, points in found.items() if len(points) > 1}


def draw(lines: dict[str, list[tuple[int, float]]]) -> str:
    """An SVG; numbers of images are evenly spaced."""
    counts = sorted({count for points in lines.values() for count, _ in points})
    least = min(value for points in lines.values() for _, value in points)
    bottom = int(least // 10) * 10

    def x(count: int) -> float:
        return LEFT + 20 + counts.index(count) / max(len(counts) - 1, 1) * (RIGHT - LEFT - 40)

    def y(value: float) -> float:
        return BOTTOM - (value - bottom) / (100 - bottom) * (BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">Closed-form recovery: top-1 of 10,000 CIFAR-10 test images</text>',
        f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">unlabelled training images</text>',
    ]
    for tick in range(bottom, 101, 10):
        parts.append(f'<line x1="{LEFT}" y1="{y(tick):.1f}" x2="{RIGHT}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick} %</text>')
    parts += [f'<text x="{x(c):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{c:,}</text>' for c in counts]
    for colour, (place, (name, points)) in zip(COLOURS, enumerate(lines.items()), strict=False):
        path = " ".join(f"{x(count):.1f},{y(value):.1f}" for count, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for count, value in points:
            parts.append(f'<circle cx="{x(count):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>')
            parts.append(f'<text x="{x(count):.1f}" y="{y(value) - 7:.1f}" text-anchor="middle">{value:.1f}</text>')
        parts.append(f'<text x="{RIGHT - 200}" y="{BOTTOM - 12 - 16 * place}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
