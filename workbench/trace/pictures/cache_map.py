"""The KV cache, block by block, as one step finds it; above it the same in sums, step by step.

Up to `MOST_CELLS` blocks are a cell each. Beyond, a cell is consecutive blocks, filled from below by how many
of them are held, shared and findable. A held block is a full cell, one that is free and still findable a
hollow one, a free one an empty one: who sees no colours sees that. So a cell's colour can say whose adapter
the block is of instead (`owners`), where each is a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.trace.pictures.adapter_colours import Colours, adapters_by_request
from workbench.trace.pictures.block_history import (
    CACHED,
    CODES,
    FREE,
    HELD,
    HELD_FINDABLE,
    NO_LINE,
    SHARED,
    SHARED_FINDABLE,
    UNKNOWN,
    BlockHistory,
    BlockStates,
)
from workbench.trace.pictures.svg import LEFT, RIGHT, WIDTH, Scale, round_up, svg, tick_rows, ticks
from workbench.trace.pictures.theme import heading, legend
from workbench.trace.schema import Table, Tables

Longs = npt.NDArray[np.int64]

MOST_CELLS = 1000
MOST_BARS = 180
HEIGHT = 112  # of the sums
COLUMNS = (20, 25, 40, 50)
LARGEST, TALLEST = 40, 370  # user units: a cell, all rows
NUMBERED = 14  # a cell as wide has room for its number of holders

# What is drawn: class, codes, legend. From below in a cell and in a bar.
KINDS = (
    ("held", (HELD, HELD_FINDABLE), "held by one request"),
    ("shared", (SHARED, SHARED_FINDABLE), "shared by several (how many)"),
    ("cached", (CACHED,), "free, and still findable"),
    ("waiting", (UNKNOWN,), "the trace does not say"),
    ("empty", (FREE,), "free"),
)
GREYS = {"held": "further", "shared": "further shade1", "cached": "base"}  # where colours are adapters'
KIND_OF = np.array([next(k for k, kind in enumerate(KINDS) if code in kind[1]) for code in range(CODES + 1)])


class Cells(NamedTuple):
    """What is drawn: [cells] consecutive blocks each."""

    states: BlockStates
    first: Longs  # number of a cell's first block
    last: Longs
    counts: Longs  # [cells, KINDS] blocks
    most: Longs  # holders of its most shared block
    evicted: Longs  # blocks taken in this step that could be found before

    @property
    def single(self) -> bool:
        """A cell is a block."""
        return bool((self.first == self.last).all())


def cells(states: BlockStates, window: tuple[int, int] | None = None) -> Cells:
    """The cells of some blocks.

    Args:
        states: of all blocks; at least one.
        window: numbers of the first and last block shown; None: all.
    """
    low, high = window or (1, len(states.codes))
    starts = np.arange(low - 1, high, round_up((high - low + 1) / MOST_CELLS))
    ends = np.append(starts[1:], high)
    part = slice(low - 1, high)
    at, kinds = starts - (low - 1), KIND_OF[states.codes[part]]
    counts = [np.add.reduceat((kinds == kind).astype(np.int64), at) for kind in range(len(KINDS))]
    most, evicted = np.maximum.reduceat(states.holders[part], at), states.evicted[part].astype(np.int64)
    return Cells(states, starts + 1, ends, np.stack(counts, 1), most, np.add.reduceat(evicted, at))


class Owners(NamedTuple):
    """Whose adapter the blocks are of, where a cell is one."""

    colours: Colours
    adapters: list[str | None]  # [cells]; None: the base model's, or nobody's


def owners(found: Cells, blocks: Table, requests: Table, colours: Colours) -> Owners | None:
    """By the request that each block was last spoken of with; None where cells are several blocks."""
    if not found.single:
        return None
    lines, names = found.states.lines[found.first - 1].tolist(), adapters_by_request(requests)
    return Owners(
        colours, [None if line == NO_LINE else names.get(blocks["request_id"][line]) for line in lines]
    )


class Grid(NamedTuple):
    """Where cells stand."""

    columns: int
    side: float

    def corner(self, place: int) -> tuple[float, float]:
        row, column = divmod(place, self.columns)
        return LEFT + column * self.side, 4 + row * self.side


def _grid(count: int) -> Grid:
    for columns in COLUMNS:
        side = min((WIDTH - LEFT - RIGHT) / columns, LARGEST)
        if -(-count // columns) * side <= TALLEST:
            break
    return Grid(columns, side)


# --- words ----------------------------------------------------------------------------------------------


def headline(states: BlockStates, steps: Table) -> str:
    """What there is to see, in a sentence."""
    total = len(states.codes)
    held, shared = states.count(*range(HELD, CODES)), states.count(SHARED, SHARED_FINDABLE)
    when = f"in step {states.step}" if states.step is not None else f"after step {steps['step'][-1]}"
    many = f", {shared:,} of them by several requests" if shared else ""
    return (
        f"KV cache {when}: {held:,} of {total:,} blocks are held{many};"
        f" {states.count(CACHED):,} are free and still findable"
    )


def _legend(found: Cells, owned: Owners | None) -> str:
    states, totals = found.states, np.bincount(KIND_OF[found.states.codes], minlength=len(KINDS))
    entries = [] if owned is None else owned.colours.legend
    entries += [
        (_key(name, found.single, owned is not None), f"{said}: {totals[kind]:,}")
        for kind, (name, _, said) in enumerate(KINDS)
        if totals[kind] or name != "waiting"
    ]
    if gone := int(states.evicted.sum()):
        entries.append(("evicted", f"evicted in this step, and taken for something else: {gone:,}"))
    if not found.single:
        size = int(found.last[0] - found.first[0]) + 1
        entries.append(("none", f"a cell is {size} blocks: click to zoom in"))
    return legend(*entries)


def _key(name: str, single: bool, by_adapter: bool) -> str:
    """How a kind looks in the legend: where colours are adapters', by its shape alone."""
    if by_adapter:
        return {"held": "shape", "shared": "shape", "cached": "shape hollow"}.get(name, name)
    return "cached hollow" if name == "cached" and single else name


# --- the map --------------------------------------------------------------------------------------------


def draw(found: Cells, blocks: Table, selected: int | None = None, owned: Owners | None = None) -> str:
    """The map and its legend; a cell's `data-pick` is "block:N", or "blocks:first:last".

    Args:
        blocks: the trace's table.
        selected: a block's number.
        owned: whose adapter each is of; None: colours are kinds.
    """
    grid, count = _grid(len(found.first)), len(found.first)
    rows = -(-count // grid.columns)
    body = f'<path class="frame" d="{"".join(_frames(count, grid))}"/>{_fillings(found, grid, owned)}'
    body += "".join(_targets(found, blocks, grid, owned)) + _row_names(found, grid) + _marks(found, grid)
    if selected is not None:
        body += _selected(found, selected, grid)
    return svg(rows * grid.side + 8, "Blocks of the KV cache", body) + _legend(found, owned)


def _frames(count: int, grid: Grid) -> Iterator[str]:
    room = grid.side - 1.5
    for place in range(count):
        x, y = grid.corner(place)
        yield f"M{x:.1f} {y:.1f}h{room:.1f}v{room:.1f}h-{room:.1f}z"


def _fillings(found: Cells, grid: Grid, owned: Owners | None) -> str:
    """A path for each kind, or for each adapter's part of a kind."""
    drawn, below, single = [], np.zeros(len(found.first)), found.single
    sizes = (found.last - found.first + 1).astype(np.float64)
    classes = None if owned is None else owned.colours.of(owned.adapters)
    for kind, (name, _, _) in enumerate(KINDS[:-1]):
        places = np.flatnonzero(found.counts[:, kind])
        shares = found.counts[:, kind] / sizes
        shape = _hollow if single and name == "cached" else _full
        lines: dict[str, list[str]] = {}
        for place, *rest in zip(
            places.tolist(), below[places].tolist(), shares[places].tolist(), strict=True
        ):
            own = name if classes is None or name == "waiting" else classes[place]
            lines.setdefault(own, []).append(shape(grid, place, *rest))
        below += shares
        drawn += [f'<path class="{own}" d="{"".join(parts)}"/>' for own, parts in lines.items()]
    return "".join(drawn)


def _full(grid: Grid, place: int, below: float, share: float) -> str:
    x, y = grid.corner(place)
    room = grid.side - 1.5
    height = max(room * share, 1.5)  # what is there can be seen
    return f"M{x:.1f} {y + room * (1 - below) - height:.1f}h{room:.1f}v{height:.1f}h-{room:.1f}z"


def _hollow(grid: Grid, place: int, below: float, share: float) -> str:
    """A frame: the inner square turns the other way, which leaves it out."""
    x, y = grid.corner(place)
    room = grid.side - 1.5
    edge = max(room / 5, 1.5)
    inner = room - 2 * edge
    return (
        f"M{x:.1f} {y:.1f}h{room:.1f}v{room:.1f}h-{room:.1f}z"
        f"M{x + edge:.1f} {y + edge:.1f}v{inner:.1f}h{inner:.1f}v-{inner:.1f}z"
    )


def _targets(found: Cells, blocks: Table, grid: Grid, owned: Owners | None) -> Iterator[str]:
    """What can be hovered over and clicked."""
    room, single = f'width="{grid.side - 1.5:.1f}" height="{grid.side - 1.5:.1f}"', found.single
    titles = _block_titles(found, blocks, owned) if single else _titles(found)
    spans = zip(found.first.tolist(), found.last.tolist(), titles, strict=True)
    for place, (first, last, title) in enumerate(spans):
        x, y = grid.corner(place)
        pick = f"block:{first}" if single else f"blocks:{first}:{last}"
        yield (
            f'<rect class="hit" x="{x:.1f}" y="{y:.1f}" {room} data-pick="{pick}">'
            f"<title>{escape(title)}</title></rect>"
        )


def _titles(found: Cells) -> Iterator[str]:
    for place, counts in enumerate(found.counts.tolist()):
        parts = [f"{n} {kind[2]}" for n, kind in zip(counts, KINDS, strict=True) if n]
        said = ", ".join(parts).replace("(how many)", f"(up to {found.most[place]})")
        gone = f", {found.evicted[place]} evicted in this step" if found.evicted[place] else ""
        yield f"blocks {found.first[place]} to {found.last[place]}: {said}{gone}"


def _block_titles(found: Cells, blocks: Table, owned: Owners | None) -> Iterator[str]:
    states = found.states
    for place, block in enumerate(found.first.tolist()):
        line, holders = int(states.lines[block - 1]), int(states.holders[block - 1])
        code = int(states.codes[block - 1])
        tail = ", evicted in this step and taken again" if states.evicted[block - 1] else ""
        adapter = None if owned is None or code == FREE else owned.adapters[place]
        tail = f", adapter {adapter}{tail}" if adapter else tail
        yield f"block {block}: {_standing(code, holders)}{_whose(blocks, line, code)}{tail}"


def _standing(code: int, holders: int) -> str:
    if code >= HELD:
        return f"held by {holders} request{'s' if holders > 1 else ''}" if code != UNKNOWN else KINDS[3][2]
    return "free, and still findable" if code == CACHED else "free"


def _whose(blocks: Table, line: int, code: int) -> str:
    if line == NO_LINE or code == FREE:
        return ""
    name, at = blocks["request_id"][line], blocks["position"][line]
    where = "" if np.isnan(at) else f", tokens from position {at:.0f}"
    return f"{where} of request {name}" if name is not None else where


def _row_names(found: Cells, grid: Grid) -> str:
    """The number of each row's first block, where there is room."""
    every = 1 if grid.side >= 11 else 2
    rows = range(0, len(found.first), grid.columns * every)
    return "".join(
        f'<text class="value" x="{LEFT - 6}" y="{grid.corner(place)[1] + grid.side / 2 + 3:.1f}">'
        f"{found.first[place]:,}</text>"
        for place in rows
    )


def _marks(found: Cells, grid: Grid) -> str:
    """How many share a block, and which were evicted."""
    middle = (grid.side - 1.5) / 2
    drawn = []
    if found.single and grid.side >= NUMBERED:
        for place in np.flatnonzero(found.most > 1).tolist():
            x, y = grid.corner(place)
            at = f'x="{x + middle:.1f}" y="{y + middle + 3.5:.1f}"'
            drawn.append(f'<text class="inside" {at}>{found.most[place]}</text>')
    for place in np.flatnonzero(found.evicted).tolist():
        x, y = grid.corner(place)
        at = f'cx="{x + middle:.1f}" cy="{y + middle:.1f}" r="{min(grid.side / 4, 5):.1f}"'
        drawn.append(f'<circle class="evicted" {at}/>')
    return "".join(drawn)


def _selected(found: Cells, block: int, grid: Grid) -> str:
    place = int(np.searchsorted(found.first, block, "right")) - 1
    if place < 0 or block > found.last[place]:
        return ""
    x, y = grid.corner(place)
    room = f'width="{grid.side + 0.5:.1f}" height="{grid.side + 0.5:.1f}"'
    return f'<rect class="selected" x="{x - 1:.1f}" y="{y - 1:.1f}" {room}/>'


# --- the sums -------------------------------------------------------------------------------------------


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


def picture(tables: Tables) -> str:
    """For a page that does not move: the sums, and the map in the step that held most; "" without steps."""
    steps = tables.steps
    if not len(steps["step"]):
        return ""
    history = BlockHistory()
    history.take(tables.blocks, steps)
    step = int(steps["step"][np.argmax(steps["blocks_held"])])
    states = history.at(step)
    return (
        heading(headline(states, steps)) + timeline(history, steps, step) + draw(cells(states), tables.blocks)
    )
