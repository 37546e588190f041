"""Pictures of a trace as SVG text: tokens a step, requests over time, KV blocks. Colours are CSS classes.

Knows the tables; nothing of the page around them. Each picture says in its tooltips what it shows exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from html import escape
from typing import NamedTuple

import numpy as np

from workbench.trace.schema import Table

WIDTH = 960  # user units; the page scales pictures to its width
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 34  # room for the axes
ROW = 15  # height of a request's line
MOST_SEGMENTS = 6000  # a browser draws these at once; beyond, bars show their sums
MOST_BARS = 480
MOST_REQUESTS = 120


class Scale(NamedTuple):
    """A linear map from values to user units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low or 1.0) * (self.end - self.start)


class Bin(NamedTuple):
    """Consecutive steps drawn as one bar."""

    first: int  # place in the steps table
    last: int  # of the last step


# --- tokens a step --------------------------------------------------------------------------------------


def budget_chart(steps: Table, chunks: Table) -> str:
    """Bars, one a step: the tokens it computed, by request, prefill and decode, under the budget's line."""
    if not len(steps["step"]):
        return ""
    bins = _bins(len(steps["step"]))
    detailed = len(bins) == len(steps["step"]) and len(chunks["step"]) <= MOST_SEGMENTS
    top = float(max(steps["budget"].max() if detailed else 0, steps["scheduled"].max(), 1))
    x, y = Scale(0, len(bins), LEFT, WIDTH - RIGHT), Scale(0, top, 240 - BOTTOM, TOP)
    bars = _request_bars(steps, chunks, x, y) if detailed else _summed_bars(steps, bins, x, y)
    budget = _budget_line(steps, bins, x, y) if steps["budget"].max() <= top else ""
    labels = _step_labels(steps, bins, x)
    return _svg(
        240,
        "Tokens computed by each step",
        _frame(x, y, labels, "step", "tokens", 240) + "".join(bars) + budget,
    )


def _bins(count: int) -> list[Bin]:
    width = math.ceil(count / MOST_BARS)
    return [Bin(first, min(first + width, count) - 1) for first in range(0, count, width)]


def _request_bars(steps: Table, chunks: Table, x: Scale, y: Scale) -> Iterator[str]:
    bounds = np.searchsorted(chunks["step"], steps["step"])
    ends = np.append(bounds[1:], len(chunks["step"]))
    for place, (begin, end) in enumerate(zip(bounds.tolist(), ends.tolist(), strict=True)):
        below = 0
        for line in range(begin, end):
            for kind in ("prefill", "decode"):
                count = int(chunks[kind][line])
                if count:
                    name = chunks["request_id"][line]
                    title = f"step {steps['step'][place]}: {count} {kind} tokens of request {name}"
                    yield _bar(x, y, place, below, count, kind, title)
                    below += count
        if steps["preempted"][place]:
            yield _mark(
                x(place + 0.5),
                y(below) - 3,
                f"step {steps['step'][place]} preempted {steps['preempted'][place]}",
            )


def _summed_bars(steps: Table, bins: list[Bin], x: Scale, y: Scale) -> Iterator[str]:
    for place, (first, last) in enumerate(bins):
        below = 0.0
        for kind in ("prefill", "decode"):
            mean = float(steps[kind][first : last + 1].mean())
            if mean:
                span = f"{steps['step'][first]} to {steps['step'][last]}"
                yield _bar(x, y, place, below, mean, kind, f"steps {span}: {mean:.1f} {kind} tokens a step")
                below += mean


def _bar(x: Scale, y: Scale, place: int, below: float, count: float, kind: str, title: str) -> str:
    gap = 0.12 if x(1) - x(0) > 4 else 0.0
    left, top = x(place + gap), y(below + count)
    width, height = x(place + 1 - gap) - left, y(below) - top
    return _rectangle(left, top, width, height, kind, title)


def _budget_line(steps: Table, bins: list[Bin], x: Scale, y: Scale) -> str:
    budget = int(steps["budget"].max())
    title = f"token budget: {budget}"
    height = f"{y(budget):.1f}"
    return (
        f'<line class="budget" x1="{x(0):.1f}" x2="{x(len(bins)):.1f}" y1="{height}" y2="{height}">'
        f"<title>{title}</title></line>"
    )


def _step_labels(steps: Table, bins: list[Bin], x: Scale) -> list[tuple[float, str]]:
    every = max(1, _round_up(len(bins) / 12))
    return [(x(place + 0.5), str(steps["step"][bins[place].first])) for place in range(0, len(bins), every)]


# --- requests over time ---------------------------------------------------------------------------------


def request_chart(requests: Table, steps: Table, chunks: Table) -> str:
    """A line a request: waiting, prefill, decode and preemption over time."""
    count = min(len(requests["request_id"]), MOST_REQUESTS)
    if not count or not len(steps["step"]):
        return ""
    height = ROW * count + TOP + BOTTOM
    ends = np.nan_to_num(steps["collected_s"], nan=0.0)
    times = np.concatenate([requests["arrived_s"][:count], [steps["planned_s"].min()]])
    x = Scale(float(np.nanmin(times)), float(max(ends.max(), np.nanmax(times))), LEFT + 40, WIDTH - RIGHT)
    y = Scale(0, count, TOP, TOP + ROW * count)
    names = [str(name) for name in requests["request_id"][:count]]
    body = [_lane(requests, line, x, y) for line in range(count)]
    body += _work({name: line for line, name in enumerate(names)}, steps, chunks, x, y)
    axis = _value_axis(x, height - BOTTOM, "seconds")
    return _svg(height, "Requests over time", axis + _row_names(names, y) + "".join(body))


def _row_names(names: Iterable[str], y: Scale) -> str:
    return "".join(
        f'<text class="name" x="{LEFT + 32}" y="{y(line + 0.72):.1f}">{escape(_clip(name))}</text>'
        for line, name in enumerate(names)
    )


def _lane(requests: Table, line: int, x: Scale, y: Scale) -> str:
    begin = _first_known(requests["arrived_s"][line], x.low)
    end = _first_known(requests["finished_s"][line], x.high)
    title = f"request {requests['request_id'][line]}: waiting, or preempted"
    return _rectangle(x(begin), y(line + 0.4), x(end) - x(begin), y(0.2) - y(0), "waiting", title)


def _first_known(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else float(value)


class _Stretch(NamedTuple):
    """Consecutive steps in which a request did the same."""

    kind: str
    begin: int  # place in the steps table
    end: int
    tokens: int


def _work(lines: dict[str, int], steps: Table, chunks: Table, x: Scale, y: Scale) -> Iterator[str]:
    places = np.searchsorted(steps["step"], chunks["step"]).tolist()
    kinds = np.where(
        chunks["dropped"], "dropped", np.where(chunks["prefill"] > 0, "prefill", "decode")
    ).tolist()
    open_stretches: dict[str, _Stretch] = {}
    columns = (chunks["request_id"].tolist(), places, kinds, chunks["scheduled"].tolist())
    for name, place, kind, tokens in zip(*columns, strict=True):
        if name not in lines:
            continue
        last = open_stretches.get(name)
        if last is not None and last.kind == kind and last.end == place - 1:
            open_stretches[name] = _Stretch(kind, last.begin, place, last.tokens + tokens)
            continue
        if last is not None:
            yield _drawn(name, last, lines[name], steps, x, y)
        open_stretches[name] = _Stretch(kind, place, place, tokens)
    for name, last in open_stretches.items():
        yield _drawn(name, last, lines[name], steps, x, y)


def _drawn(name: str, stretch: _Stretch, line: int, steps: Table, x: Scale, y: Scale) -> str:
    begin = _first_known(steps["launched_s"][stretch.begin], float(steps["planned_s"][stretch.begin]))
    end = _first_known(steps["collected_s"][stretch.end], begin)
    span = f"steps {steps['step'][stretch.begin]} to {steps['step'][stretch.end]}"
    title = f"request {name}, {span}: {stretch.tokens} {stretch.kind} tokens"
    return _rectangle(
        x(begin), y(line + 0.15), max(x(end) - x(begin), 0.8), y(0.7) - y(0), stretch.kind, title
    )


def _value_axis(x: Scale, bottom: float, unit: str) -> str:
    ticks = list(_ticks(x.low, x.high, 10))
    lines = "".join(
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{TOP}" y2="{bottom}"/>' for t in ticks
    )
    labels = "".join(f'<text class="tick" x="{x(t):.1f}" y="{bottom + 14}">{t:g}</text>' for t in ticks)
    return (
        lines + labels + f'<text class="axis" x="{(x.start + x.end) / 2:.0f}" y="{bottom + 29}">{unit}</text>'
    )


# --- prompts and the prefix cache -----------------------------------------------------------------------


def cache_chart(requests: Table) -> str:
    """A bar a request: how much of its prompt was found in the prefix cache, and how much was computed."""
    count = min(len(requests["request_id"]), MOST_REQUESTS)
    if not count:
        return ""
    height = ROW * count + TOP + BOTTOM
    x = Scale(0, float(requests["prompt_tokens"][:count].max()), LEFT + 40, WIDTH - RIGHT)
    y = Scale(0, count, TOP, TOP + ROW * count)
    names = [str(name) for name in requests["request_id"][:count]]
    bars = [_prompt_bar(requests, line, x, y) for line in range(count)]
    axis = _value_axis(x, height - BOTTOM, "prompt tokens")
    return _svg(
        height, "Prompt tokens found in the prefix cache", axis + _row_names(names, y) + "".join(bars)
    )


def _prompt_bar(requests: Table, line: int, x: Scale, y: Scale) -> str:
    cached, prompt = int(requests["cached_tokens"][line]), int(requests["prompt_tokens"][line])
    title = f"request {requests['request_id'][line]}: {cached} of {prompt} prompt tokens were in the cache"
    top, height = y(line + 0.15), y(0.7) - y(0)
    found = _rectangle(x(0), top, x(cached) - x(0), height, "found", title) if cached else ""
    return found + _rectangle(x(cached), top, x(prompt) - x(cached), height, "prefill", title)


# --- KV blocks ------------------------------------------------------------------------------------------


def block_chart(steps: Table) -> str:
    """Areas over the steps: blocks held by requests, and of the free ones those still findable."""
    count = len(steps["step"])
    if not count:
        return ""
    bins = _bins(count)
    held, free = steps["blocks_held"], steps["blocks_free"]
    total = float((held + free).max())
    x, y = Scale(0, len(bins), LEFT, WIDTH - RIGHT), Scale(0, total or 1.0, 180 - BOTTOM, TOP)
    bars = "".join(_block_bars(steps, bins, x, y))
    return _svg(
        180,
        "KV blocks at each step",
        _frame(x, y, _step_labels(steps, bins, x), "step", "blocks", 180) + bars,
    )


def _block_bars(steps: Table, bins: list[Bin], x: Scale, y: Scale) -> Iterator[str]:
    for place, (first, last) in enumerate(bins):
        held = float(steps["blocks_held"][first : last + 1].mean())
        cached = float(steps["blocks_cached"][first : last + 1].mean())
        title = f"step {steps['step'][first]}: {held:g} blocks held, {cached:g} findable"
        yield _bar(x, y, place, 0.0, held, "held", title)
        yield _dot(x(place + 0.5), y(cached), "cached", title)


# --- parts ----------------------------------------------------------------------------------------------


def _svg(height: float, label: str, body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _rectangle(left: float, top: float, width: float, height: float, kind: str, title: str) -> str:
    place = f'x="{left:.1f}" y="{top:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect class="{kind}" {place}><title>{escape(title)}</title></rect>'


def _dot(x: float, y: float, kind: str, title: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="1.6"><title>{escape(title)}</title></circle>'


def _mark(x: float, y: float, title: str) -> str:
    corners = f"{x - 4:.1f},{y - 7:.1f} {x + 4:.1f},{y - 7:.1f} {x:.1f},{y:.1f}"
    return f'<polygon class="preempted" points="{corners}"><title>{escape(title)}</title></polygon>'


def _frame(
    x: Scale, y: Scale, labels: Iterable[tuple[float, str]], below: str, beside: str, height: int
) -> str:
    rows = "".join(
        f'<line class="grid" x1="{x.start}" x2="{x.end}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="value" x="{LEFT - 6}" y="{y(t) + 4:.1f}">{t:g}</text>'
        for t in _ticks(y.low, y.high, 5)
    )
    marks = "".join(
        f'<text class="tick" x="{at:.1f}" y="{y.start + 14:.1f}">{text}</text>' for at, text in labels
    )
    middle, centre = (x.start + x.end) / 2, (y.start + y.end) / 2
    return (
        f'{rows}{marks}<text class="axis" x="{middle:.0f}" y="{height - 3}">{below}</text>'
        f'<text class="axis" transform="translate(12 {centre:.0f}) rotate(-90)">{beside}</text>'
    )


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round values in [low, high], about `count` of them."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    first = math.ceil(low / width)
    return [round(k * width, 9) for k in range(first, math.floor(high / width + 1e-9) + 1)]


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50 ..."""
    power = int(10 ** math.floor(math.log10(max(value, 1))))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _clip(name: str, most: int = 12) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
