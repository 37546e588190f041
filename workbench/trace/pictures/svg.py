"""What pictures are made of: scales, axes, marks, as SVG text. Colours are CSS classes, see `theme`.

Knows numbers and names; no table. Whatever a user wrote is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

WIDTH = 960  # user units; the page scales pictures to its width
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 34  # room for the axes
ROW = 15  # height of a request's line


class Scale(NamedTuple):
    """A linear map from values to user units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low or 1.0) * (self.end - self.start)


def svg(height: float, label: str, body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{body}</svg>'


def rectangle(left: float, top: float, width: float, height: float, kind: str, title: str) -> str:
    place = f'x="{left:.1f}" y="{top:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect class="{kind}" {place}><title>{escape(title)}</title></rect>'


def dot(x: float, y: float, kind: str, title: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="1.6"><title>{escape(title)}</title></circle>'


def mark(x: float, y: float, title: str) -> str:
    corners = f"{x - 4:.1f},{y - 7:.1f} {x + 4:.1f},{y - 7:.1f} {x:.1f},{y:.1f}"
    return f'<polygon class="preempted" points="{corners}"><title>{escape(title)}</title></polygon>'


def tick_rows(x: Scale, y: Scale, beside: str) -> str:
    """Grid lines with their values, and what they count."""
    rows = "".join(
        f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="value" x="{LEFT - 6}" y="{y(t) + 4:.1f}">{t:g}</text>'
        for t in ticks(y.low, y.high, 5)
    )
    centre = (y.start + y.end) / 2
    return (
        f'{rows}<text class="axis" transform="translate(12 {centre:.0f}) rotate(-90)">{escape(beside)}</text>'
    )


def frame(
    x: Scale, y: Scale, labels: Iterable[tuple[float, str]], below: str, beside: str, height: int
) -> str:
    """Both axes: rows of values, and labels at places along the foot."""
    marks = "".join(
        f'<text class="tick" x="{at:.1f}" y="{y.start + 14:.1f}">{text}</text>' for at, text in labels
    )
    middle = (x.start + x.end) / 2
    return (
        f'{tick_rows(x, y, beside)}{marks}<text class="axis" x="{middle:.0f}" y="{height - 3}">{below}</text>'
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values in [low, high], about `count` of them."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    first = math.ceil(low / width)
    return [round(k * width, 9) for k in range(first, math.floor(high / width + 1e-9) + 1)]


def round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50 ..."""
    power = int(10 ** math.floor(math.log10(max(value, 1))))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def clip(name: str, most: int = 12) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def value_axis(x: Scale, bottom: float, unit: str) -> str:
    values = ticks(x.low, x.high, 10)
    lines = "".join(
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{TOP}" y2="{bottom}"/>' for t in values
    )
    labels = "".join(f'<text class="tick" x="{x(t):.1f}" y="{bottom + 14}">{t:g}</text>' for t in values)
    return (
        lines + labels + f'<text class="axis" x="{(x.start + x.end) / 2:.0f}" y="{bottom + 29}">{unit}</text>'
    )


def row_names(names: Iterable[str], y: Scale) -> str:
    return "".join(
        f'<text class="name" x="{LEFT + 32}" y="{y(line + 0.72):.1f}">{escape(clip(name))}</text>'
        for line, name in enumerate(names)
    )
