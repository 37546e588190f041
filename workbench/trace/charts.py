"""Pictures of the report as SVG text: prefix cache, KV blocks. Colours are CSS classes.

Knows the tables; nothing of the page around them. Each picture says in its tooltips what it shows exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from workbench.trace.pictures.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    ROW,
    TOP,
    WIDTH,
    Scale,
    dot,
    frame,
    rectangle,
    round_up,
    row_names,
    svg,
    value_axis,
)
from workbench.trace.schema import Table

MOST_BARS = 480
MOST_REQUESTS = 120


class Bin(NamedTuple):
    """Consecutive steps drawn as one bar."""

    first: int  # place in the steps table
    last: int  # of the last step


def _bins(count: int) -> list[Bin]:
    width = math.ceil(count / MOST_BARS)
    return [Bin(first, min(first + width, count) - 1) for first in range(0, count, width)]


def _bar(x: Scale, y: Scale, place: int, below: float, count: float, kind: str, title: str) -> str:
    gap = 0.12 if x(1) - x(0) > 4 else 0.0
    left, top = x(place + gap), y(below + count)
    width, height = x(place + 1 - gap) - left, y(below) - top
    return rectangle(left, top, width, height, kind, title)


def _step_labels(steps: Table, bins: list[Bin], x: Scale) -> list[tuple[float, str]]:
    every = max(1, round_up(len(bins) / 12))
    return [(x(place + 0.5), str(steps["step"][bins[place].first])) for place in range(0, len(bins), every)]


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
    axis = value_axis(x, height - BOTTOM, "prompt tokens")
    return svg(height, "Prompt tokens found in the prefix cache", axis + row_names(names, y) + "".join(bars))


def _prompt_bar(requests: Table, line: int, x: Scale, y: Scale) -> str:
    cached, prompt = int(requests["cached_tokens"][line]), int(requests["prompt_tokens"][line])
    title = f"request {requests['request_id'][line]}: {cached} of {prompt} prompt tokens were in the cache"
    top, height = y(line + 0.15), y(0.7) - y(0)
    found = rectangle(x(0), top, x(cached) - x(0), height, "found", title) if cached else ""
    return found + rectangle(x(cached), top, x(prompt) - x(cached), height, "prefill", title)


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
    return svg(
        180,
        "KV blocks at each step",
        frame(x, y, _step_labels(steps, bins, x), "step", "blocks", 180) + bars,
    )


def _block_bars(steps: Table, bins: list[Bin], x: Scale, y: Scale) -> Iterator[str]:
    for place, (first, last) in enumerate(bins):
        held = float(steps["blocks_held"][first : last + 1].mean())
        cached = float(steps["blocks_cached"][first : last + 1].mean())
        title = f"step {steps['step'][first]}: {held:g} blocks held, {cached:g} findable"
        yield _bar(x, y, place, 0.0, held, "held", title)
        yield dot(x(place + 0.5), y(cached), "cached", title)
