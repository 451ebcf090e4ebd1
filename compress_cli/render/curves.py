"""Error against size of every layer of a decomposition: an SVG picture, and the same in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, PAD = 180, 110, 22
COLUMNS = 5
MARKS = (0.1, 0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Curve:
    """One layer: (share of its weights, error) of the options worth taking, cheapest first, and the chosen one."""

    points: Sequence[tuple[float, float]]
    chosen: tuple[float, float]


def at_shares(curve: Curve) -> list[float | None]:
    """The least error at each of `MARKS`; None where even the smallest option is larger."""
    found: list[float | None] = []
    for mark in MARKS:
        errors = [error for share, error in curve.points if share <= mark]
        found.append(min(errors) if errors else None)
    return found


def lines(curves: Mapping[str, Curve], what: str) -> list[str]:
    """A table in text: one line per layer."""
    if not curves:
        return []
    width = max(map(len, curves))
    head = " ".join(f"{mark:>7.0%}" for mark in MARKS)
    rows = [f"least {what} of each layer at a share of its weights", f"{'':{width}} {head}  chosen"]
    for name, curve in curves.items():
        cells = " ".join("      -" if error is None else f"{error:7.4f}" for error in at_shares(curve))
        rows.append(f"{name:{width}} {cells}  {curve.chosen[1]:.4f} at {curve.chosen[0]:.0%}")
    return rows


def picture(curves: Mapping[str, Curve], what: str) -> str:
    """Small multiples, one panel per layer: share of the weights to the right, error upwards, the choice as a dot."""
    rows = -(-len(curves) // COLUMNS)
    size = f'width="{COLUMNS * WIDTH}" height="{rows * HEIGHT + PAD}"'
    panels = "".join(_panel(index, name, curve) for index, (name, curve) in enumerate(curves.items()))
    title = escape(f"{what} against the share of each layer's weights (0 to 1 on both axes); the dot is the choice")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="9" fill="currentColor">'
        f'<text x="4" y="14" font-size="11">{title}</text>{panels}</svg>\n'
    )


def _panel(index: int, name: str, curve: Curve) -> str:
    left, top = index % COLUMNS * WIDTH + 8, index // COLUMNS * HEIGHT + PAD + 12
    across, down = WIDTH - 20, HEIGHT - 26

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return left + across * min(point[0], 1.0), top + down * (1 - min(point[1], 1.0))

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, curve.points))
    x, y = place(curve.chosen)
    return (
        f'<rect x="{left}" y="{top}" width="{across}" height="{down}" fill="none" stroke="#ccc"/>'
        f'<text x="{left}" y="{top - 3}">{escape(name)}</text>'
        f'<polyline points="{path}" fill="none" stroke="#36c"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#c33"/>'
    )
