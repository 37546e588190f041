"""What the cells of the cache map hold: blocks of each kind, and of whose adapters. Draws nothing."""

from __future__ import annotations

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
    BlockStates,
)
from workbench.trace.pictures.svg import round_up
from workbench.trace.schema import Table

Longs = npt.NDArray[np.int64]

MOST_CELLS = 1000
BASE_MODEL = "base model"
NOT_TOLD = "untold"  # class of blocks that may be anybody's: the trace began later

# What is drawn: class, codes, legend. From below in a cell and in a bar.
KINDS = (
    ("held", (HELD, HELD_FINDABLE), "held by one request"),
    ("shared", (SHARED, SHARED_FINDABLE), "shared by several (how many)"),
    ("cached", (CACHED,), "free, and still findable"),
    ("waiting", (UNKNOWN,), "the trace does not say"),
    ("empty", (FREE,), "free"),
)
CACHED_KIND = 2
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
    """Whose adapters the blocks in the cells are of: a line for each cell and adapter.

    Of blocks that are held or findable; by the request that each was last spoken of with.
    """

    colours: Colours
    cell: Longs  # ascending
    adapter: Longs  # place in `labels`
    blocks: Longs  # how many

    @property
    def labels(self) -> list[str]:
        """What adapters are called; the last stands for those that the trace does not name."""
        return [BASE_MODEL if name is None else name for name in self.colours.classes] + ["not told"]

    @property
    def not_told(self) -> int:
        """Blocks whose the trace does not say."""
        return int(self.blocks[self.adapter == len(self.colours.classes)].sum())

    @property
    def classes(self) -> list[str]:
        """[labels]; several have the same one where there are many."""
        return [*self.colours.classes.values(), NOT_TOLD]

    def by_class(self, cells: int) -> tuple[list[str], Longs]:
        """Classes, each once, and the blocks [cells, classes] of each."""
        classes = list(dict.fromkeys(self.classes))
        place = np.array([classes.index(each) for each in self.classes], np.int64)[self.adapter]
        found = np.zeros((cells, len(classes)), np.int64)
        np.add.at(found, (self.cell, place), self.blocks)
        return classes, found

    def by_label(self, cells: int) -> list[dict[str, int]]:
        """Blocks in each cell."""
        labels, found = self.labels, [dict[str, int]() for _ in range(cells)]
        lines = zip(self.cell.tolist(), self.adapter.tolist(), self.blocks.tolist(), strict=True)
        for cell, adapter, blocks in lines:
            found[cell][labels[adapter]] = blocks
        return found


def owners(found: Cells, blocks: Table, requests: Table, colours: Colours) -> Owners:
    """Whose the blocks in these cells are.

    Args:
        blocks: the trace's table.
        requests: the trace's table.
        colours: of its adapters.
    """
    part = slice(int(found.first[0]) - 1, int(found.last[-1]))
    codes, lines = found.states.codes[part], found.states.lines[part]
    mine = np.flatnonzero((codes != FREE) & (codes != UNKNOWN))
    number, not_told = {name: place for place, name in enumerate(colours.classes)}, len(colours.classes)
    number_of = {each: number[name] for each, name in adapters_by_request(requests).items()}
    names = blocks["request_id"][lines[mine]].tolist()
    adapter = np.array([number_of.get(name, not_told) for name in names], np.int64)
    adapter[lines[mine] == NO_LINE] = not_told
    cell = np.repeat(np.arange(len(found.first)), found.last - found.first + 1)[mine]
    together, counts = np.unique(cell * (not_told + 1) + adapter, return_counts=True)
    return Owners(colours, *np.divmod(together, not_told + 1), counts)
