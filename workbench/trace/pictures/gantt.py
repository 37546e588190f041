"""Requests over time: waiting, prefill, decode, preempted; when the first token came and when they ended.

A lane is a request, in order of arrival. Where there are more requests than lanes, a second picture above the
lanes counts who did what at each time. Where stretches are shorter than a mark, the first stands for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.trace.pictures import stretches as work
from workbench.trace.pictures.stretches import Stretches
from workbench.trace.pictures.svg import (
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    clip,
    rectangle,
    svg,
    tick_rows,
    value_axis,
)
from workbench.trace.pictures.theme import legend
from workbench.trace.schema import Table

Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]

KINDS = (*work.KINDS, "waiting", "preempted")
WAITING, PREEMPTED = 3, 4  # places in KINDS
NAMES = LEFT + 40  # where lanes begin
FOOT = 34  # room for the time axis
LANE = 15  # height
MOST_MARKS = 4000  # in the lanes of one picture
MOST_COLUMNS = 160  # of the picture that counts
CROWD = 130  # its height
CROWD_KINDS = (1, 0, 2, PREEMPTED, WAITING)  # from below


class Spans(NamedTuple):
    """Who did what when: columns with a line for each span, in no order; times are seconds."""

    request: Longs  # place in the requests table
    kind: Longs  # place in KINDS
    begin: Floats
    end: Floats
    tokens: Longs
    first: Longs  # index of the first step; -1 where nothing is computed
    last: Longs


class Gantt(NamedTuple):
    """Spans, and the time that is shown."""

    spans: Spans
    low: float
    high: float
    step_begins: Floats  # by place in the steps table
    step_ends: Floats


def gantt(requests: Table, steps: Table, found: Stretches, window: slice | None = None) -> Gantt:
    """What is drawn.

    Args:
        requests, steps: the trace's tables, with at least one step.
        found: their stretches.
        window: places in the steps table whose time is shown; None: from the first arrival to the end.
    """
    begins, ends = step_times(steps)
    low = float(np.fmin.reduce(requests["arrived_s"], initial=begins[0]))
    high = float(np.fmax.reduce(requests["finished_s"], initial=ends[-1]))
    if window is not None:
        low, high = float(begins[window][0]), float(ends[window][-1])
    parts = [_worked(steps, found, begins, ends), *_paused(requests, found, begins, ends)]
    columns: list[Any] = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Gantt(Spans(*columns), low, max(high, low + 1e-9), begins, ends)


def step_times(steps: Table) -> tuple[Floats, Floats]:
    """When each step began and ended, on a device that does one at a time."""
    launched = np.where(np.isnan(steps["launched_s"]), steps["planned_s"], steps["launched_s"])
    ends = np.maximum.accumulate(np.where(np.isnan(steps["collected_s"]), launched, steps["collected_s"]))
    begins = np.maximum(launched, np.concatenate([[-np.inf], ends[:-1]]))
    return begins, np.maximum(ends, begins)


def alive(found: Gantt, requests: Table) -> Longs:
    """Places of the requests that were there in the time shown."""
    arrived = np.nan_to_num(requests["arrived_s"], nan=-np.inf)
    finished = np.nan_to_num(requests["finished_s"], nan=np.inf)
    return np.flatnonzero((arrived <= found.high) & (finished >= found.low))


def _worked(steps: Table, found: Stretches, begins: Floats, ends: Floats) -> Spans:
    index = steps["step"]
    return Spans(
        found.request,
        found.kind,
        begins[found.begin],
        ends[found.end],
        found.tokens,
        index[found.begin],
        index[found.end],
    )


def _paused(requests: Table, found: Stretches, begins: Floats, ends: Floats) -> Iterator[Spans]:
    """Waiting before the first step; preempted before a resumption, and since the last step."""
    size = len(requests["request_id"])
    over = np.where(np.isnan(requests["finished_s"]), ends[-1], requests["finished_s"])
    scheduled = np.where(np.isnan(requests["scheduled_s"]), over, requests["scheduled_s"])
    there = np.flatnonzero(~np.isnan(requests["arrived_s"]))
    yield _pause(there, WAITING, requests["arrived_s"][there], scheduled[there])
    order = np.argsort(found.request, kind="stable")
    resumed = np.flatnonzero(found.resumed[order])
    now, before = order[resumed], order[np.maximum(resumed - 1, 0)]
    yield _pause(found.request[now], PREEMPTED, ends[found.end[before]], begins[found.begin[now]])
    came_back = np.bincount(found.request[found.resumed], minlength=size)
    last = np.full(size, -np.inf)
    last[found.request[order]] = ends[found.end[order]]
    gone = np.flatnonzero((requests["preemptions"] > came_back) & np.isfinite(last))
    yield _pause(gone, PREEMPTED, last[gone], over[gone])


def _pause(request: Longs, kind: int, begin: Floats, end: Floats) -> Spans:
    nobody, size = np.full(len(request), -1), len(request)
    return Spans(
        request,
        np.full(size, kind),
        begin,
        np.maximum(begin, end),
        np.zeros(size, np.int64),
        nobody,
        nobody,
    )


def close_up(found: Gantt, requests: Table, lanes: Longs) -> Gantt:
    """The same, in the time in which these requests were there."""
    low = np.fmin.reduce(requests["arrived_s"][lanes], initial=found.high)
    ends = np.where(np.isnan(requests["finished_s"][lanes]), found.high, requests["finished_s"][lanes])
    low, high = max(float(low), found.low), min(float(ends.max()), found.high)
    return found._replace(low=low, high=max(high, low + 1e-9))


# --- a lane a request -----------------------------------------------------------------------------------


def draw(
    found: Gantt, requests: Table, lanes: Longs, step: int | None = None, request: str | None = None
) -> str:
    """Lanes of some requests; a lane's `data-pick` is "request:PLACE".

    Args:
        lanes: places in the requests table, at least one, from above.
        step: place in the steps table of the one to mark.
        request: id of the one to mark.
    """
    foot = TOP + LANE * len(lanes)
    x = Scale(found.low, found.high, NAMES, WIDTH - RIGHT)
    marks = _marks(found, lanes, x)
    drawn = "".join(
        _lane(
            requests,
            place,
            TOP + LANE * row,
            x,
            marks.get(place, ""),
            requests["request_id"][place] == request,
        )
        for row, place in enumerate(lanes.tolist())
    )
    marked = "" if step is None else _step(found, step, x, foot)
    return svg(foot + FOOT, "Requests over time", f"{value_axis(x, foot, 'seconds')}{drawn}{marked}")


def _lane(requests: Table, place: int, top: float, x: Scale, marks: str, selected: bool) -> str:
    name = str(requests["request_id"][place])
    room = f'x="0" y="{top:.1f}" width="{WIDTH}" height="{LANE}"'
    outline = f'<rect class="selected" {room} rx="2"/>' if selected else ""
    title = escape(_said(requests, place))
    strong = " said" if selected else ""
    label = f'<text class="name{strong}" x="{NAMES - 8}" y="{top + 11:.1f}">{escape(clip(name))}</text>'
    return (
        f'<g data-pick="request:{place}"><title>{title}</title><rect class="hit" {room}/>{label}'
        f'<g transform="translate(0 {top:.1f})">{marks}{_moments(requests, place, x)}</g>{outline}</g>'
    )


def _said(requests: Table, place: int) -> str:
    values = {name: column[place] for name, column in requests.items()}
    ended = values["finish_reason"] or "not finished"
    return (
        f"{values['request_id']}: {values['prompt_tokens']} prompt tokens ({values['cached_tokens']} cached),"
        f" {values['output_tokens']} generated, {values['preemptions']} preemptions; {ended}"
    )


def _moments(requests: Table, place: int, x: Scale) -> str:
    """The first token, and the end."""
    first, end = float(requests["first_token_s"][place]), float(requests["finished_s"][place])
    drawn = ""
    if x.low <= end <= x.high:
        title = f"finished: {requests['finish_reason'][place]}"
        drawn += rectangle(x(end) - 1.2, 1.5, 2.4, LANE - 3, "finished", title)
    if x.low <= first <= x.high:
        title = f"first token after {first - float(requests['arrived_s'][place]):.3g} s"
        drawn += f'<circle class="first" cx="{x(first):.1f}" cy="7.5" r="3"><title>{title}</title></circle>'
    return drawn


def _marks(found: Gantt, lanes: Longs, x: Scale) -> dict[int, str]:
    """By request: its spans in the time shown."""
    spans = found.spans
    lines = np.flatnonzero((spans.end >= x.low) & (spans.begin <= x.high) & np.isin(spans.request, lanes))
    lines = lines[np.lexsort((spans.begin[lines], spans.request[lines]))]
    if len(lines) > MOST_MARKS:
        lines = _thinned(spans, lines, len(lanes), x)
    drawn: dict[int, list[str]] = {}
    for line in lines.tolist():
        drawn.setdefault(int(spans.request[line]), []).append(_span(spans, line, x))
    return {place: "".join(marks) for place, marks in drawn.items()}


def _thinned(spans: Spans, lines: Longs, lanes: int, x: Scale) -> Longs:
    """The first span in each cell of a lane."""
    cells = math.ceil(MOST_MARKS / lanes)
    cell = ((spans.begin[lines] - x.low) / (x.high - x.low) * cells).astype(np.int64)
    first = np.diff(spans.request[lines] * (cells + 2) + cell, prepend=-(10**9)) != 0
    kept: Longs = lines[first]
    return kept


def _span(spans: Spans, line: int, x: Scale) -> str:
    begin, end = max(float(spans.begin[line]), x.low), min(float(spans.end[line]), x.high)
    kind = KINDS[spans.kind[line]]
    thin = spans.first[line] < 0
    top, height = (5.5, 4.0) if thin else (2.0, LANE - 4.0)
    return rectangle(x(begin), top, max(x(end) - x(begin), 0.8), height, kind, _span_title(spans, line, kind))


def _span_title(spans: Spans, line: int, kind: str) -> str:
    seconds = f"{spans.end[line] - spans.begin[line]:.3g} s"
    if spans.first[line] < 0:
        return f"{kind} for {seconds}"
    first, last = spans.first[line], spans.last[line]
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    what = "tokens computed for nobody" if kind == "dropped" else f"{kind} tokens"
    return f"{steps}: {spans.tokens[line]} {what} in {seconds}"


def _step(found: Gantt, place: int, x: Scale, foot: float) -> str:
    begin, end = max(found.step_begins[place], x.low), min(found.step_ends[place], x.high)
    if end < begin:
        return ""
    width = max(x(end) - x(begin), 1.5)
    room = f'x="{x(begin):.1f}" y="{TOP - 4}" width="{width:.1f}" height="{foot - TOP + 6:.1f}"'
    return f'<rect class="here" {room}/>'


# --- all requests ---------------------------------------------------------------------------------------


def counts(found: Gantt, columns: int = MOST_COLUMNS) -> dict[str, Longs]:
    """How many requests did what in the middle of each of so many equal parts of the time shown, by kind."""
    width = (found.high - found.low) / columns
    times = found.low + width * (np.arange(columns) + 0.5)
    return {KINDS[kind]: _at(found.spans, kind, times) for kind in CROWD_KINDS}


def _at(spans: Spans, kind: int, times: npt.NDArray[np.floating[Any]]) -> Longs:
    mine = spans.kind == kind
    begun = np.searchsorted(np.sort(spans.begin[mine]), times, "right")
    ended = np.searchsorted(np.sort(spans.end[mine]), times, "right")
    return (begun - ended).astype(np.int64)


def draw_counts(found: Gantt, part: Gantt, step: int | None = None) -> str:
    """How many requests did what, over time, and which time the lanes below show: `part`.

    A column's `data-pick` is "time:FIRST:LAST", places in the steps table.
    """
    count = counts(found)
    top = float(max(np.sum(list(count.values()), axis=0).max(), 1))
    x = Scale(found.low, found.high, NAMES, WIDTH - RIGHT)
    y = Scale(0, top, CROWD - FOOT, TOP)
    body = "".join(_column(found, count, column, x, y) for column in range(MOST_COLUMNS))
    marked = "" if step is None else _step(found, step, x, y.start)
    axes = tick_rows(x, y, "requests") + value_axis(x, y.start, "seconds; below, the outlined part")
    room = f'x="{x(part.low):.1f}" y="{TOP - 4}" width="{max(x(part.high) - x(part.low), 2):.1f}"'
    outline = f'<rect class="selected" {room} height="{y.start - TOP + 6:.1f}" rx="2"/>'
    return svg(CROWD, "What requests did over time", axes + body + outline + marked)


def _column(found: Gantt, count: dict[str, Longs], column: int, x: Scale, y: Scale) -> str:
    width = (x.end - x.start) / MOST_COLUMNS
    left, below, drawn = x.start + column * width, 0, []
    for kind, values in count.items():
        here = int(values[column])
        if here:
            at = f'x="{left:.1f}" y="{y(below + here):.1f}" width="{width:.2f}"'
            drawn.append(f'<rect class="{kind} whole" {at} height="{y(0) - y(here):.1f}"/>')
            below += here
    begin = found.low + (found.high - found.low) * column / MOST_COLUMNS
    end = begin + (found.high - found.low) / MOST_COLUMNS
    first = min(int(np.searchsorted(found.step_ends, begin)), len(found.step_ends) - 1)
    last = max(first, int(np.searchsorted(found.step_begins, end)) - 1)
    said = ", ".join(f"{int(values[column])} {kind}" for kind, values in count.items() if values[column])
    title = f"at {(begin + end) / 2:.3g} s: {said or 'nobody'}. Click to zoom in."
    room = f'x="{left:.1f}" y="{TOP}" width="{width:.2f}" height="{y.start - TOP:.1f}"'
    return (
        f'<g data-pick="time:{first}:{last}"><title>{escape(title)}</title>{"".join(drawn)}'
        f'<rect class="hit" {room}/></g>'
    )


def legend_of(found: Gantt) -> str:
    """What the colours and marks mean."""
    kinds = [("waiting", "waiting"), ("prefill", "prefill chunk"), ("decode", "decode")]
    if (found.spans.kind == PREEMPTED).any():
        kinds.append(("preempted", "preempted"))
    if (found.spans.kind == 2).any():
        kinds.append(("dropped", "computed for nobody"))
    return legend(*kinds, ("dot", "first token"), ("end", "finished"))
