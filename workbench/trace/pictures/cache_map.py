"""The KV cache, block by block, as one step finds it.

Up to `MOST_CELLS` blocks are a cell each. Beyond, a cell is consecutive blocks, filled from below by how many
of them are held, shared and findable. A held block is a full cell, one that is free and still findable a
hollow one, a free one an empty one: who sees no colours sees that. So colours can say whose adapters the
blocks are of instead (`owners`). A cell of several blocks is then split from side to side by how many are
whose, and is full as far up as blocks are held, and striped where they are findable.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.trace.pictures.block_history import (
    CACHED,
    CODES,
    FREE,
    HELD,
    NO_LINE,
    SHARED,
    SHARED_FINDABLE,
    UNKNOWN,
    BlockHistory,
    BlockStates,
)
from workbench.trace.pictures.cache_cells import (
    BASE_MODEL,
    CACHED_KIND,
    KIND_OF,
    KINDS,
    NOT_TOLD,
    Cells,
    Owners,
    cells,
)
from workbench.trace.pictures.cache_sums import timeline
from workbench.trace.pictures.svg import LEFT, RIGHT, WIDTH, svg
from workbench.trace.pictures.theme import heading, legend
from workbench.trace.schema import Table, Tables

Floats = npt.NDArray[np.float64]

COLUMNS = (20, 25, 40, 50)
LARGEST, TALLEST = 40, 370  # user units: a cell, all rows
NUMBERED = 14  # a cell as wide has room for its number of holders
LEAST, NARROWEST = 1.5, 0.08  # user units, and part of a cell's width: what is there can be seen
MOST_NAMED = 4  # adapters that a cell's hover text names


class Grid(NamedTuple):
    """Where cells stand."""

    columns: int
    side: float

    @property
    def room(self) -> float:
        """Within a cell."""
        return self.side - 1.5

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
    if owned is not None and owned.not_told:
        entries.append((NOT_TOLD, f"the trace does not say whose: {owned.not_told:,}"))
    if gone := int(states.evicted.sum()):
        entries.append(("evicted", f"evicted in this step, and taken for something else: {gone:,}"))
    if not found.single:
        size = int(found.last[0] - found.first[0]) + 1
        split = "" if owned is None else ", split by adapter"
        entries.append(("none", f"a cell is {size} blocks{split}: click to zoom in"))
    return legend(*entries)


def _key(name: str, single: bool, by_adapter: bool) -> str:
    """How a kind looks in the legend: where colours are adapters', by its shape alone."""
    if by_adapter:
        cached = "shape hollow" if single else "shape striped"
        return {"held": "shape", "shared": "shape", "cached": cached, "waiting": NOT_TOLD}.get(name, name)
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
    room = grid.room
    for place in range(count):
        x, y = grid.corner(place)
        yield f"M{x:.1f} {y:.1f}h{room:.1f}v{room:.1f}h-{room:.1f}z"


def _fillings(found: Cells, grid: Grid, owned: Owners | None) -> str:
    """A path for each kind; where there are owners, one for each of them in place of held and findable."""
    drawn, below = "", np.zeros(len(found.first))
    sizes = (found.last - found.first + 1).astype(np.float64)
    for kind, (name, _, _) in enumerate(KINDS[:-1]):
        places, shares = np.flatnonzero(found.counts[:, kind]), found.counts[:, kind] / sizes
        if owned is None or name == "waiting":
            lines = zip(places.tolist(), below[places].tolist(), shares[places].tolist(), strict=True)
            shape = _hollow if found.single and name == "cached" else _full
            drawn += _path(name if owned is None else NOT_TOLD, [shape(grid, *line) for line in lines])
        below += shares
    return drawn + ("" if owned is None else _owned(found, grid, owned))


def _path(kind: str, parts: list[str], more: str = "") -> str:
    return f'<path class="{kind}"{more} d="{"".join(parts)}"/>' if parts else ""


def _owned(found: Cells, grid: Grid, owned: Owners) -> str:
    """Held and findable blocks, from side to side by adapter."""
    classes, blocks = owned.by_class(len(found.first))
    sizes, cached = found.last - found.first + 1, found.counts[:, CACHED_KIND]
    parts: list[list[str]] = [[] for _ in classes]
    shares = (blocks.sum(axis=1) / sizes).tolist()
    for place, (counts, share) in enumerate(zip(blocks.tolist(), shares, strict=True)):
        shape = _hollow if found.single and cached[place] else _full
        for colour, left, width in _widths(counts):
            parts[colour].append(shape(grid, place, 0.0, share, left, width))
    drawn = "".join(_path(kind, each) for kind, each in zip(classes, parts, strict=True))
    return drawn if found.single else drawn + _stripes(grid, cached / sizes, shares)


def _widths(counts: list[int]) -> Iterator[tuple[int, float, float]]:
    """Place, left edge and width, as parts of a cell, of the counts that are not 0; few can be seen, too."""
    total = sum(counts)
    widths = [max(count / total, NARROWEST) if count else 0.0 for count in counts]
    left, whole = 0.0, sum(widths)
    for place, width in enumerate(widths):
        if width:
            yield place, left / whole, width / whole
            left += width


def _full(grid: Grid, place: int, below: float, share: float, left: float = 0.0, width: float = 1.0) -> str:
    """A part of a cell, as parts of its height and width; what is there can be seen."""
    x, y = grid.corner(place)
    height, across = max(grid.room * share, LEAST), grid.room * width
    top = y + grid.room * (1 - below) - height
    return f"M{x + grid.room * left:.1f} {top:.1f}h{across:.1f}v{height:.1f}h-{across:.1f}z"


def _stripes(grid: Grid, shares: Floats, tops: list[float]) -> str:
    """Over findable blocks: lines down cells' middles, as wide as the cells; the style sheet dashes."""
    parts = []
    for place in np.flatnonzero(shares).tolist():
        x, y = grid.corner(place)
        top = y + grid.room * (1 - tops[place])
        parts.append(f"M{x + grid.room / 2:.1f} {top:.1f}v{max(grid.room * shares[place], LEAST):.1f}")
    return _path("stripes", parts, f' stroke-width="{grid.room:.1f}"')


def _hollow(grid: Grid, place: int, *_: float) -> str:
    """A frame: the inner square turns the other way, which leaves it out."""
    x, y = grid.corner(place)
    room = grid.room
    edge = max(room / 5, LEAST)
    inner = room - 2 * edge
    return (
        f"M{x:.1f} {y:.1f}h{room:.1f}v{room:.1f}h-{room:.1f}z"
        f"M{x + edge:.1f} {y + edge:.1f}v{inner:.1f}h{inner:.1f}v-{inner:.1f}z"
    )


def _targets(found: Cells, blocks: Table, grid: Grid, owned: Owners | None) -> Iterator[str]:
    """What can be hovered over and clicked."""
    room, single = f'width="{grid.room:.1f}" height="{grid.room:.1f}"', found.single
    whose = [{}] * len(found.first) if owned is None else owned.by_label(len(found.first))
    titles = _block_titles(found, blocks, whose) if single else _titles(found, whose)
    spans = zip(found.first.tolist(), found.last.tolist(), titles, strict=True)
    for place, (first, last, title) in enumerate(spans):
        x, y = grid.corner(place)
        pick = f"block:{first}" if single else f"blocks:{first}:{last}"
        yield (
            f'<rect class="hit" x="{x:.1f}" y="{y:.1f}" {room} data-pick="{pick}">'
            f"<title>{escape(title)}</title></rect>"
        )


def _titles(found: Cells, whose: list[dict[str, int]]) -> Iterator[str]:
    for place, counts in enumerate(found.counts.tolist()):
        parts = [f"{n} {kind[2]}" for n, kind in zip(counts, KINDS, strict=True) if n]
        said = ", ".join(parts).replace("(how many)", f"(up to {found.most[place]})")
        gone = f", {found.evicted[place]} evicted in this step" if found.evicted[place] else ""
        by_adapter = f"; adapters: {_by_adapter(whose[place])}" if whose[place] else ""
        yield f"blocks {found.first[place]} to {found.last[place]}: {said}{gone}{by_adapter}"


def _by_adapter(blocks: dict[str, int]) -> str:
    """Those with most blocks first."""
    first = sorted(blocks.items(), key=lambda each: -each[1])
    said = ", ".join(f"{count} {label}" for label, count in first[:MOST_NAMED])
    more = sum(count for _, count in first[MOST_NAMED:])
    return said + (f", {more} of {len(first) - MOST_NAMED} more" if more else "")


def _block_titles(found: Cells, blocks: Table, whose: list[dict[str, int]]) -> Iterator[str]:
    states = found.states
    for place, block in enumerate(found.first.tolist()):
        line, holders = int(states.lines[block - 1]), int(states.holders[block - 1])
        code = int(states.codes[block - 1])
        tail = "".join(f", adapter {label}" for label in whose[place] if label != BASE_MODEL)
        tail += ", evicted in this step and taken again" if states.evicted[block - 1] else ""
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
    middle = grid.room / 2
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
