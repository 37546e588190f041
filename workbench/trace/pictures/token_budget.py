"""Tokens a step: who got how many, of what kind, under which budget.

Up to `MOST_BARS` steps are a bar each, and up to `MOST_SEGMENTS` chunks a segment each; beyond, a segment is
all requests' tokens of a kind, and a bar is the mean of consecutive steps, with a shadow up to the largest
of them. Drafts are told apart where the tables have any. Kinds are what the tokens are for, or, where colours
of adapters are given, whose they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.trace.pictures.adapter_colours import Colours
from workbench.trace.pictures.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    mark,
    round_up,
    svg,
    tick_rows,
)
from workbench.trace.pictures.theme import legend
from workbench.trace.schema import Table

Floats = npt.NDArray[np.float64]

HEIGHT = 240
MOST_BARS = 200
MOST_SEGMENTS = 2000
MOST_NAMED = 8  # requests in a tooltip
KINDS = ("prefill", "decode", "accepted", "rejected")
MEANING = {
    "prefill": "prefill chunk",
    "decode": "decode",
    "accepted": "draft, accepted",
    "rejected": "draft, rejected",
}


class Segment(NamedTuple):
    """What one request got in one step, of one kind."""

    kind: str
    tokens: int
    request_id: str
    colour: str  # class: the kind's, or its adapter's


class Bars(NamedTuple):
    """What is drawn: [bars] consecutive steps each."""

    first: npt.NDArray[np.int64]  # index of a bar's first step
    last: npt.NDArray[np.int64]
    tokens: dict[str, Floats]  # class -> mean tokens a step
    peak: Floats  # tokens of its largest step
    preempted: npt.NDArray[np.int64]
    segments: list[list[Segment]]  # of each bar's one step; empty where bars hold several
    budget: int  # the largest of these steps'
    by_request: bool  # few enough to draw a segment for each
    meaning: dict[str, str]  # class -> what its tokens are

    @property
    def top(self) -> float:
        """Tokens of the highest bar."""
        return float(self.peak.max())


def bars(steps: Table, chunks: Table, window: slice = slice(None), colours: Colours | None = None) -> Bars:
    """The bars of some steps.

    Args:
        steps: the trace's table, with at least one line in the window.
        chunks: step_requests.
        window: places in the steps table.
        colours: of adapters; None: tokens are coloured by what they are for.
    """
    part = {name: column[window] for name, column in steps.items()}
    count = len(part["step"])
    starts = np.arange(0, count, round_up(count / MOST_BARS))
    ends = np.append(starts[1:], count)
    segments = _segments(part, chunks, colours) if len(starts) == count else []
    kinds = _kinds(part) if colours is None else _adapters(part, chunks, colours)
    return Bars(
        part["step"][starts],
        part["step"][ends - 1],
        {kind: np.add.reduceat(values, starts) / (ends - starts) for kind, values in kinds.items()},
        np.maximum.reduceat(part["scheduled"], starts).astype(np.float64),
        np.add.reduceat(part["preempted"], starts),
        segments,
        int(part["budget"].max()),
        0 < sum(map(len, segments)) <= MOST_SEGMENTS,
        MEANING if colours is None else dict(colours.legend),
    )


def _kinds(steps: Table) -> dict[str, Floats]:
    """Tokens of each step by kind; a draft that was not accepted, or that nobody took, counts as rejected."""
    accepted, draft = steps["accepted"], steps["draft"]
    columns = (steps["prefill"], steps["decode"] - draft, accepted, draft - accepted)
    return {kind: column.astype(np.float64) for kind, column in zip(KINDS, columns, strict=True)}


def _adapters(steps: Table, chunks: Table, colours: Colours) -> dict[str, Floats]:
    """Tokens of each step by the class of their adapter."""
    span = slice(*np.searchsorted(chunks["step"], (steps["step"][0], steps["step"][-1] + 1)).tolist())
    number = {kind: place for place, kind in enumerate(colours.kinds)}
    kinds = np.array([number[kind] for kind in colours.of(chunks["adapter"][span].tolist())], np.int64)
    lines = np.searchsorted(steps["step"], chunks["step"][span]) * len(number) + kinds
    size = len(steps["step"]) * len(number)
    tokens = np.bincount(lines, chunks["scheduled"][span], size).reshape(-1, len(number))
    return dict(zip(number, tokens.T, strict=True))


def _segments(steps: Table, chunks: Table, colours: Colours | None) -> list[list[Segment]]:
    begin = np.searchsorted(chunks["step"], steps["step"], "left").tolist()
    end = np.searchsorted(chunks["step"], steps["step"], "right").tolist()
    return [list(_of_step(chunks, slice(*span), colours)) for span in zip(begin, end, strict=True)]


def _of_step(chunks: Table, lines: slice, colours: Colours | None) -> Iterator[Segment]:
    names = ("request_id", "adapter", "prefill", "decode", "draft", "accepted")
    columns = (chunks[name][lines].tolist() for name in names)
    for name, adapter, prefill, decode, draft, accepted in zip(*columns, strict=True):
        counts = (prefill, decode - draft, accepted, draft - accepted)
        own = None if colours is None else colours.classes[adapter]
        yield from (Segment(kind, n, name, own or kind) for kind, n in zip(KINDS, counts, strict=True) if n)


# --- drawing --------------------------------------------------------------------------------------------


def draw(found: Bars, selected: int | None = None) -> str:
    """The picture and its legend; a bar's `data-pick` is its step, or "first:last"."""
    count = len(found.first)
    x = Scale(0, count, LEFT, WIDTH - RIGHT)
    broken = found.budget > 4 * found.top  # to scale, the bars would be stubs
    top = (found.top if broken else max(found.budget, found.top)) or 1.0
    y = Scale(0, top, HEIGHT - BOTTOM, TOP + (58 if broken else 26))
    body = "".join(_bar(found, place, x, y) for place in range(count))
    line = _budget(found.budget, TOP + 26 if broken else y(found.budget), broken)
    axes = tick_rows(x, y, "tokens") + _step_axis(found, x)
    marked = "" if selected is None else _selection(found, selected, x, y)
    return svg(HEIGHT, "Tokens computed by each step", axes + body + line + marked) + _legend(found)


def _bar(found: Bars, place: int, x: Scale, y: Scale) -> str:
    first, last = int(found.first[place]), int(found.last[place])
    room = f'x="{x(place):.1f}" y="{TOP}" width="{x(1) - x(0):.2f}" height="{y.start - TOP:.1f}"'
    preempted = found.preempted[place]
    marked = mark(x(place + 0.5), TOP + 7, f"{preempted} preempted") if preempted else ""
    pick = f"{first}" if first == last else f"{first}:{last}"
    return (
        f'<g data-pick="{pick}"><title>{escape(_bar_title(found, place))}</title>'
        f'<rect class="hit" {room}/>{"".join(_pieces(found, place, x, y))}{marked}</g>'
    )


def _pieces(found: Bars, place: int, x: Scale, y: Scale) -> Iterator[str]:
    gap = 0.1 if x(1) - x(0) > 3 else 0.0
    across = f'x="{x(place + gap):.1f}" width="{(x(1) - x(0)) * (1 - 2 * gap):.2f}"'
    below = 0.0
    for kind, tokens, title in _by_request(found, place) if found.by_request else _by_kind(found, place):
        top, height = y(below + tokens), y(0) - y(tokens)
        yield f'<rect class="{kind}" {across} y="{top:.1f}" height="{height:.1f}">{title}</rect>'
        below += tokens
    if found.last[place] > found.first[place]:
        top = y(found.peak[place])
        yield f'<rect class="peak whole" {across} y="{top:.1f}" height="{max(y(below) - top, 0):.1f}"/>'


def _by_request(found: Bars, place: int) -> Iterator[tuple[str, float, str]]:
    """Neighbours of one kind differ in shade."""
    step = found.first[place]
    for line, segment in enumerate(found.segments[place]):
        title = f"step {step}, {segment.request_id}: {segment.tokens} {_tokens_of(segment.kind)}"
        yield f"{segment.colour} shade{line % 3}", segment.tokens, f"<title>{escape(title)}</title>"


def _by_kind(found: Bars, place: int) -> Iterator[tuple[str, float, str]]:
    yield from ((kind, float(v[place]), "") for kind, v in found.tokens.items() if v[place])


def _tokens_of(kind: str) -> str:
    return {"prefill": "prompt tokens (prefill)", "decode": "decode"}.get(kind, f"drafts {kind}")


def _said(found: Bars, colour: str) -> str:
    return _tokens_of(colour) if colour in KINDS else f"tokens of {found.meaning[colour]}"


def _bar_title(found: Bars, place: int) -> str:
    first, last = found.first[place], found.last[place]
    kinds = ", ".join(f"{v[place]:.4g} {_said(found, k)}" for k, v in found.tokens.items() if v[place])
    if last > first:
        return f"steps {first} to {last}, mean: {kinds}; largest {found.peak[place]:.0f}. Click to zoom in."
    got: Counter[str] = Counter()
    for segment in found.segments[place] if found.segments else ():
        got[segment.request_id] += segment.tokens
    who = [f"{name}: {tokens}" for name, tokens in got.most_common(MOST_NAMED)]
    more = f"and {len(got) - MOST_NAMED} more" if len(got) > MOST_NAMED else ""
    return "\n".join(filter(None, [f"step {first}: {kinds}", *who, more]))


def _budget(budget: int, height: float, broken: bool) -> str:
    label = f"token budget {budget:,}"
    line = (
        f'<line class="budget" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}">'
        f'<title>{label}</title></line><text class="said" x="{WIDTH - RIGHT}" y="{height - 5:.1f}"'
        f' text-anchor="end">{label}{" (not to scale)" if broken else ""}</text>'
    )
    if not broken:
        return line
    at = height + 14  # the axis is cut here
    zigzag = f"M{LEFT - 5} {at + 4} l10 -5 M{LEFT - 5} {at + 9} l10 -5"
    return f'{line}<path class="break" d="{zigzag}"/>'


def _step_axis(found: Bars, x: Scale) -> str:
    """Round steps are labelled, at the bars they are in."""
    every = round_up((found.last[-1] - found.first[0] + 1) / 12)
    steps = np.arange(-(-found.first[0] // every) * every, found.last[-1] + 1, every)
    places = np.searchsorted(found.last, steps).tolist()
    labels = "".join(
        f'<text class="tick" x="{x(place + 0.5):.1f}" y="{HEIGHT - BOTTOM + 14}">{step}</text>'
        for place, step in zip(places, steps.tolist(), strict=True)
    )
    return f'{labels}<text class="axis" x="{(x.start + x.end) / 2:.0f}" y="{HEIGHT - 3}">step</text>'


def _selection(found: Bars, step: int, x: Scale, y: Scale) -> str:
    hits = np.flatnonzero((found.first <= step) & (step <= found.last))
    if not len(hits):
        return ""
    place, height = int(hits[0]), y.start - TOP
    room = f'x="{x(place):.1f}" y="{TOP}" width="{x(1) - x(0):.1f}" height="{height:.1f}"'
    return f'<rect class="selected" {room}/>'


def _legend(found: Bars) -> str:
    kinds = [
        (kind, said)
        for kind, said in found.meaning.items()
        if kind in ("prefill", "decode") or found.tokens[kind].any()
    ]
    if found.preempted.any():
        kinds.append(("preempted", "a step that preempted"))
    note = []
    if not found.by_request:
        steps = int(found.last[0] - found.first[0]) + 1
        what = (
            f"a bar is the mean of {steps} steps, the shadow reaches to their largest"
            if steps > 1
            else "all requests together"
        )
        note = [("none", what)]
    return legend(*kinds, ("line", "token budget"), *note)


def step_table(steps: Table, chunks: Table, step: int) -> str:
    """Who got what in one step, as an HTML table; "" where the tables do not hold it."""
    places = np.flatnonzero(steps["step"] == step)
    if not len(places):
        return ""
    place = int(places[0])
    span = slice(*(int(np.searchsorted(chunks["step"], step, side)) for side in ("left", "right")))
    names = ("request_id", "start", "scheduled", "prefill", "decode", "cached")
    rows = zip(*(chunks[name][span].tolist() for name in names), strict=True)
    cells = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row) + "</tr>" for row in rows)
    said = ", ".join(f"{int(steps[n][place])} {n}" for n in ("admitted", "preempted", "running", "waiting"))
    scheduled, budget = int(steps["scheduled"][place]), int(steps["budget"][place])
    head = "".join(f"<th>{name}</th>" for name in ("request", "from position", *names[2:]))
    return (
        f"<h4>Step {step}: {scheduled:,} of {budget:,} tokens</h4><p class=note>{said}</p>"
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>"
    )
