"""A run at a glance: throughput, queues, KV cache, hits and drafts over time, a row each under one time axis.

A row is drawn in `COLUMNS` equal parts of the time shown: what was done in each, or what there was on average
while steps ran. The sums are the tables', however the time is cut. Where no step ran there is no line.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.trace.pictures.gantt import step_times
from workbench.trace.pictures.svg import RIGHT, TOP, WIDTH, Scale, svg, value_axis
from workbench.trace.schema import Table

Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]

COLUMNS = 160
ROW, FOOT, NAMES = 54, 34, 250  # height of a row, room for the time axis, where lines begin
RECENT = 1.0  # seconds that "now" looks back


class Row(NamedTuple):
    """One figure over time."""

    title: str
    kind: str  # its colour
    values: Floats  # [COLUMNS]; NaN: there was nothing to tell
    figure: str  # large
    note: str  # small
    top: float  # of its axis
    unit: str


class Rows(NamedTuple):
    """What is drawn: rows, and the time and the steps of their columns."""

    edges: Floats  # [COLUMNS + 1]; seconds
    first: Longs  # [COLUMNS]; place in the steps table of a column's first step
    last: Longs
    rows: tuple[Row, ...]
    begins: Floats  # by place in the steps table; seconds
    ends: Floats


class Course(NamedTuple):
    """When the steps shown ran, cut into columns."""

    begins: Floats  # [steps]
    ends: Floats
    edges: Floats

    def done(self, amounts: npt.ArrayLike, edges: Floats | None = None) -> Floats:
        """Between each two edges, what the steps did; a step does its amount evenly."""
        reached = np.cumsum(np.asarray(amounts, np.float64))
        times = np.ravel([self.begins, self.ends], "F")
        before = np.concatenate([[0.0], reached[:-1]])
        at = np.interp(self.edges if edges is None else edges, times, np.ravel([before, reached], "F"))
        return np.diff(at)

    def there(self, values: npt.ArrayLike) -> Floats:
        """In each column, the mean of what there was while steps ran; NaN: none did."""
        lasted = self.ends - self.begins
        return _ratio(self.done(np.asarray(values) * lasted), self.done(lasted))


def rows(steps: Table, window: slice = slice(None), *, now: bool = False) -> Rows:
    """What is drawn of some steps.

    Args:
        steps: the trace's table, with at least one line in the window.
        window: places in it.
        now: the run goes on: large figures are of its last second, not of all that is shown.
    """
    begins, ends = step_times(steps)
    carried = steps["running"] > steps["admitted"]  # somebody ran on: what lies between is no idle time
    begins[1:] = np.where(carried[1:], ends[:-1], begins[1:])
    part = {name: column[window] for name, column in steps.items()}
    low, high = float(begins[window][0]), float(ends[window][-1])
    edges = np.linspace(low, max(high, low + 1e-9), COLUMNS + 1)
    course = Course(begins[window], ends[window], edges)
    offset = window.indices(len(begins))[0]
    first, last = (places + offset for places in _steps_in(course))
    return Rows(edges, first, last, tuple(_rows(part, course, now)), begins, ends)


def _steps_in(course: Course) -> tuple[Longs, Longs]:
    """First and last step of each column; where steps are few, the one in its middle."""
    begins, ends, edges = course
    most = len(ends) - 1
    if len(ends) <= COLUMNS:
        middle = np.minimum(np.searchsorted(ends, (edges[1:] + edges[:-1]) / 2), most)
        return middle, middle
    first = np.minimum(np.searchsorted(ends, edges[:-1], "right"), most)
    return first, np.maximum(first, np.searchsorted(begins, edges[1:], "left") - 1)


def _rows(part: Table, course: Course, now: bool) -> list[Row]:
    total = np.maximum(part["blocks_held"] + part["blocks_free"], 1)
    prompts = part["cached"] + part["prefill"]  # what is computed again is among them
    found = [
        _rate("generated tokens / s", "decode", part["sampled"] + part["forced"], course, now),
        _rate("prompt tokens computed / s", "prefill", part["prefill"], course, now),
        _level("requests running", "held", part["running"], course, now, "{:,.0f}", ""),
        _level("requests waiting", "waiting", part["waiting"], course, now, "{:,.0f}", ""),
        _level("KV blocks held", "held", 100 * part["blocks_held"] / total, course, now, "{:.0f} %", "%"),
        _share("prompt tokens found in cache", "found", part["cached"], prompts, course),
    ]
    if part["draft"].any():
        found.append(_share("drafts accepted", "accepted", part["accepted"], part["draft"], course))
    return found


def _rate(title: str, kind: str, amounts: Longs, course: Course, now: bool) -> Row:
    """So many a second."""
    values = course.done(amounts) / np.diff(course.edges)
    low, high = float(course.edges[0]), float(course.edges[-1])
    mean, peak = float(amounts.sum()) / (high - low), float(values.max())
    recent = np.array([max(high - RECENT, low), high])
    latest = float(course.done(amounts, recent)[0]) / float(recent[1] - recent[0])
    note = f"in the last second; mean {_count(mean)}" if now else f"mean; {int(amounts.sum()):,} in all"
    return Row(title, kind, values, _count(latest if now else mean), note, peak, "")


def _level(
    title: str, kind: str, values: npt.NDArray[np.generic], course: Course, now: bool, form: str, unit: str
) -> Row:
    """So many at a time."""
    there, numbers = course.there(values), np.asarray(values, np.float64)
    lasted = course.ends - course.begins
    mean = float(np.average(numbers, weights=lasted)) if lasted.sum() else float(numbers.mean())
    most = float(numbers.max())
    figure = form.format(numbers[-1] if now else mean)
    note = f"{'now' if now else 'mean'}; at most {form.format(most)}"
    return Row(title, kind, there, figure, note, 100.0 if unit == "%" else most, unit)


def _share(title: str, kind: str, part: Longs, whole: Longs, course: Course) -> Row:
    """So many of so many, in percent."""
    values = 100 * _ratio(course.done(part), course.done(whole))
    some, many = int(part.sum()), int(whole.sum())
    figure = f"{100 * some / many:.0f} %" if many else "–"
    return Row(title, kind, values, figure, f"{some:,} of {many:,}", 100.0, "%")


def _ratio(part: Floats, whole: Floats) -> Floats:
    known = whole > 1e-9
    return np.where(known, part / np.where(known, whole, 1), np.nan)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# --- drawing --------------------------------------------------------------------------------------------


def draw(found: Rows, step: int | None = None) -> str:
    """The picture; a column's `data-pick` is "FIRST:LAST", places in the steps table.

    Args:
        found: what is drawn.
        step: place in the steps table of the one to mark.
    """
    x = Scale(float(found.edges[0]), float(found.edges[-1]), NAMES, WIDTH - RIGHT)
    foot = TOP + ROW * len(found.rows)
    body = "".join(_row(row, TOP + ROW * place, x) for place, row in enumerate(found.rows))
    columns = "".join(_column(found, column, x, foot) for column in range(COLUMNS))
    marked = "" if step is None else _step(found, step, x, foot)
    width = (found.edges[-1] - found.edges[0]) / COLUMNS
    note = f"<p class=note>A point is the mean over {width:.3g} s.</p>"
    axis = value_axis(x, foot, "seconds")
    return svg(foot + FOOT, "The run at a glance", axis + body + marked + columns) + note


def _row(row: Row, top: float, x: Scale) -> str:
    y = Scale(0.0, row.top or 1.0, top + ROW - 8, top + 8)
    head = (
        f'<text class="title" x="0" y="{top + 14}">{escape(row.title)}</text>'
        f'<text class="figure" x="0" y="{top + 36}">{escape(row.figure)}</text>'
        f'<text x="{max(62, 10 + 15 * len(row.figure))}" y="{top + 36}">{escape(row.note)}</text>'
    )
    base = f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y.start}" y2="{y.start}"/>'
    peak = f'<text class="value" x="{x.start - 5}" y="{y.end + 4}">{_count(row.top)}{row.unit}</text>'
    return f"{head}{base}{peak}{_line(row, x, y)}"


def _line(row: Row, x: Scale, y: Scale) -> str:
    """Areas under a line, one for each stretch of columns that have a value."""
    width = (x.end - x.start) / len(row.values)
    known = ~np.isnan(row.values)
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    drawn = ""
    for begin, end in bounds.reshape(-1, 2).tolist():
        points = "".join(
            f"V{y(float(row.values[column])):.1f}H{x.start + (column + 1) * width:.1f}"
            for column in range(begin, end)
        )
        left = f"{x.start + begin * width:.1f}"
        drawn += f'<path class="{row.kind} area" d="M{left} {y.start:.1f}{points}V{y.start:.1f}Z"/>'
    return drawn


def _column(found: Rows, column: int, x: Scale, foot: float) -> str:
    """Where a click and a hover go; nothing is to be seen of it."""
    left, right = x(float(found.edges[column])), x(float(found.edges[column + 1]))
    first, last = int(found.first[column]), int(found.last[column])
    room = f'x="{left:.1f}" y="{TOP}" width="{right - left:.2f}" height="{foot - TOP}"'
    return (
        f'<g data-pick="{first}:{last}"><title>{escape(_said(found, column))}</title>'
        f'<rect class="hit" {room}/></g>'
    )


def _said(found: Rows, column: int) -> str:
    middle = float(found.edges[column] + found.edges[column + 1]) / 2
    first, last = int(found.first[column]), int(found.last[column])
    more = "" if first == last else ". Click to zoom in."
    lines = [f"at {middle:.4g} s, {last - first + 1} step{'' if first == last else 's'}{more}"]
    lines += [
        f"{row.title}: {_count(float(row.values[column]))}{row.unit and ' ' + row.unit}"
        for row in found.rows
        if not np.isnan(row.values[column])
    ]
    return "\n".join(lines)


def _step(found: Rows, place: int, x: Scale, foot: float) -> str:
    begin, end = max(float(found.begins[place]), x.low), min(float(found.ends[place]), x.high)
    if end < begin:
        return ""
    room = f'x="{x(begin):.1f}" y="{TOP}" width="{max(x(end) - x(begin), 1.5):.1f}" height="{foot - TOP}"'
    return f'<rect class="here" {room}/>'


SAID: tuple[tuple[str, Callable[[Table, int], int]], ...] = (
    ("computed of prompts", lambda steps, place: int(steps["prefill"][place])),
    ("found in the cache", lambda steps, place: int(steps["cached"][place])),
    ("running", lambda steps, place: int(steps["running"][place])),
    ("waiting", lambda steps, place: int(steps["waiting"][place])),
    ("blocks held", lambda steps, place: int(steps["blocks_held"][place])),
    ("free", lambda steps, place: int(steps["blocks_free"][place])),
)


def counted(number: int, noun: str) -> str:
    """A number of things, as it is said: 1 token, 2,000 tokens."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def step_line(steps: Table, found: Rows, place: int) -> str:
    """One step in figures, as HTML text."""
    generated = f"{counted(int(steps['sampled'][place] + steps['forced'][place]), 'token')} generated"
    said = ", ".join([generated, *(f"{amount(steps, place):,} {what}" for what, amount in SAID)])
    when = f"{found.begins[place]:.4g} s to {found.ends[place]:.4g} s"
    return f"<h4>Step {steps['step'][place]}, {when}</h4><p class=note>{said}</p>"
