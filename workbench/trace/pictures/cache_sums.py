"""Blocks of the KV cache held, shared and findable, step by step, as areas: what stands above the map."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workbench.trace.pictures.block_history import BlockHistory
from workbench.trace.pictures.cache_cells import KINDS
from workbench.trace.pictures.svg import LEFT, RIGHT, WIDTH, Scale, round_up, svg, tick_rows, ticks
from workbench.trace.schema import Table

Longs = npt.NDArray[np.int64]

MOST_BARS = 180
HEIGHT = 112
GREYS = {"held": "further", "shared": "further shade1", "cached": "base"}  # where colours are adapters'


def timeline(history: BlockHistory, steps: Table, step: int | None, plain: bool = False) -> str:
    """Blocks held, shared and findable at each step, as areas; a bar's `data-pick` is "step:N".

    `plain`: in greys, where colours are adapters'.
    """
    count = len(steps["step"])
    starts = np.arange(0, count, round_up(count / MOST_BARS))
    shown = np.append(starts[1:], count) - 1  # a bar is how things stood at the end of its steps
    codes = history.counts(steps["step"][shown])
    counts = np.stack([codes[:, list(kind[1])].sum(axis=1) for kind in KINDS], axis=1)
    x = Scale(0, len(shown), LEFT, WIDTH - RIGHT)
    total, most = int(counts[0].sum()), int(counts[:, :-1].sum(axis=1).max())
    top = total if 2 * most > total else max(most, 1)  # to scale with the rest, little would be nothing
    y = Scale(0, float(top), HEIGHT - 28, 8)
    bars = "".join(_bar(counts[k], int(steps["step"][shown[k]]), k, x, y, plain) for k in range(len(shown)))
    body = tick_rows(x, y, "blocks") + bars + _step_axis(steps, starts, x)
    if top < total:
        body += f'<text class="value" x="{x.end}" y="{HEIGHT - 2}">of {total:,} blocks in all</text>'
    if step is not None and steps["step"][0] <= step <= steps["step"][-1]:
        place = int(np.searchsorted(shown, np.searchsorted(steps["step"], step)))
        room = f'y="{y.end - 4:.0f}" width="{x(1) - x(0):.2f}" height="{y.start - y.end + 8:.0f}"'
        body += f'<rect class="here" x="{x(place):.1f}" {room}/>'
    return svg(HEIGHT, "Blocks held and findable at each step", body)


def _bar(counts: Longs, step: int, place: int, x: Scale, y: Scale, plain: bool) -> str:
    parts, upto = [], np.cumsum(counts).tolist()
    across = f'x="{x(place):.1f}" width="{x(1) - x(0) + 0.3:.2f}"'  # no seam between two
    for kind in range(len(KINDS) - 2, -1, -1):  # those below in front of those above
        if counts[kind]:
            top = y(upto[kind])
            room = f'y="{top:.1f}" height="{y(0) - top:.1f}"'
            colour = GREYS.get(KINDS[kind][0]) if plain else None
            parts.append(f'<rect class="{colour or KINDS[kind][0]} whole" {across} {room}/>')
    said = ", ".join(
        f"{n:,} {kind[2].removesuffix(' (how many)')}"
        for kind, n in zip(KINDS, counts.tolist(), strict=True)
        if n
    )
    room = f'y="{y.end:.0f}" height="{y.start - y.end:.0f}"'
    return (
        f'<g data-pick="step:{step}"><title>step {step}: {said}</title>{"".join(parts)}'
        f'<rect class="hit" {across} {room}/></g>'
    )


def _step_axis(steps: Table, starts: Longs, x: Scale) -> str:
    shown = steps["step"]
    labels = [int(t) for t in ticks(float(shown[0]), float(shown[-1]), 12) if t == int(t)]
    places = np.searchsorted(starts, np.searchsorted(shown, labels), "right") - 1
    return "".join(
        f'<text class="tick" x="{x(place + 0.5):.1f}" y="{HEIGHT - 15}">{label}</text>'
        for place, label in zip(places.tolist(), labels, strict=True)
    ) + (f'<text class="axis" x="{(x.start + x.end) / 2:.0f}" y="{HEIGHT - 2}">step</text>')
