"""The findable prefixes as a tree: blocks in a row that belong together are a run. Data for its picture.

Where prefixes part, and where fewer requests found what follows, a new run begins: a long system prompt is
one, and so is each turn of a conversation. Draws nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.trace.pictures.prefix_log import NOT_KNOWN, ROOT, Findable

Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Runs(NamedTuple):
    """Columns with a line for each run, parents ahead of their children."""

    first: Longs  # number of the first block's key
    last: Longs  # of the last one's
    parent: Longs  # line of the run it goes on from; ROOT, or NOT_KNOWN where what came before is gone
    begin: Longs  # blocks ahead of it
    blocks: Longs
    hits: Longs  # requests that found it
    below: Longs  # blocks of this run and of all that goes on from it
    found: Longs  # hits of those blocks, added up
    keys: Longs  # [keys] all numbers, ascending
    run: Longs  # [keys] the line each belongs to

    def lines_of(self, keys: Iterable[int]) -> list[int]:
        """Runs that these keys belong to, each once, in their order."""
        asked = np.array(list(keys), np.int64)
        return list(dict.fromkeys(self.run[np.searchsorted(self.keys, asked)].tolist()))


def runs(found: Findable, parents: Longs, depths: Longs) -> Runs:
    """The tree.

    Args:
        found: what is findable.
        parents: [keys]; the key each goes on from, ROOT or NOT_KNOWN.
        depths: [keys]; blocks ahead of each.
    """
    keys, hits = found.keys, found.hits
    above, goes_on = _joined(keys, parents, hits)
    heads = np.where(goes_on, above, np.arange(len(keys)))
    while (further := heads[heads]).tobytes() != heads.tobytes():
        heads = further
    first = np.flatnonzero(~goes_on)
    first = first[np.argsort(depths[first], kind="stable")]
    count = len(first)
    line = np.full(len(keys), -1)
    line[first] = np.arange(count)
    run, order = line[heads], np.argsort(depths, kind="stable")
    last = np.empty(count, np.int64)
    last[run[order]] = keys[order]  # the deepest wins
    gone = np.where(parents[first] == ROOT, ROOT, NOT_KNOWN)
    parent = np.where(above[first] >= 0, run[above[first]], gone)
    blocks = np.bincount(run, minlength=count)
    added = np.bincount(run, hits, count).astype(np.int64)
    below, total = (_sums(parent, depths[first], each) for each in (blocks, added))
    return Runs(keys[first], last, parent, depths[first], blocks, hits[first], below, total, keys, run)


def _joined(keys: Longs, parents: Longs, hits: Longs) -> tuple[Longs, Bools]:
    """By key: where its parent stands among the keys, -1: not there; whether it goes on its parent's run."""
    places = np.searchsorted(keys, parents)
    places[places == len(keys)] = 0
    above = np.where((parents >= 0) & (keys[places] == parents), places, -1) if len(keys) else places
    children = np.bincount(above[above >= 0], minlength=len(keys))
    goes_on = above >= 0
    goes_on[goes_on] = (children[above] == 1)[goes_on] & (hits == hits[above])[goes_on]
    return above, goes_on


def _sums(parent: Longs, begin: Longs, own: Longs) -> Longs:
    """Of each run and all that goes on from it; whoever begins alike hangs on others."""
    sums = own.copy()
    starts = np.flatnonzero(np.diff(begin, prepend=-1))
    for lines in np.split(np.arange(len(begin)), starts[1:])[::-1]:
        inner = lines[parent[lines] >= 0]
        np.add.at(sums, parent[inner], sums[inner])
    return sums


class Row(NamedTuple):
    """A line of the picture: a run, or how many more there are."""

    run: int | None
    parent: int  # line of the run it hangs on; ROOT or NOT_KNOWN
    more: int  # runs beside the one that are not drawn, with all that goes on from them
    blocks: int
    hits: int


class _Children:
    """Of each run: those that were found most come first."""

    def __init__(self, tree: Runs) -> None:
        count = len(tree.parent)
        best_first = np.lexsort((np.arange(count), -tree.below, -tree.found))
        rank = np.empty(count, np.int64)
        rank[best_first] = np.arange(count)
        self.rank = rank
        self._order = np.lexsort((rank, tree.parent))
        self._sorted = tree.parent[self._order]

    def of(self, parent: int) -> Longs:
        begin, end = np.searchsorted(self._sorted, (parent, parent + 1)).tolist()
        return self._order[begin:end]


def rows(tree: Runs, most: int, top: int | None = None, always: Collection[int] = ()) -> list[Row]:
    """Which runs are drawn, in the order of a walk: those found most, and the others as counts.

    Args:
        most: runs.
        top: only this run and what goes on from it.
        always: runs that are drawn however seldom they were found.
    """
    children = _Children(tree)
    begin = [top] if top is not None else [*children.of(ROOT)[:most], *children.of(NOT_KNOWN)[:most]]
    shown = _chosen(children, begin, most, set(always))
    walked: list[Row] = []
    stack: list[Row] = []

    def push(parent: int) -> None:
        mine = children.of(parent)
        drawn = [line for line in mine.tolist() if line in shown]
        if len(drawn) < len(mine):
            rest = mine[~np.isin(mine, drawn)]
            blocks, hits = int(tree.below[rest].sum()), int(tree.found[rest].sum())
            stack.append(Row(None, parent, len(rest), blocks, hits))
        stack.extend(_row(tree, line) for line in reversed(drawn))

    if top is None:
        push(NOT_KNOWN)
        push(ROOT)
    else:
        stack.append(_row(tree, top))
    while stack:
        walked.append(stack.pop())
        if (line := walked[-1].run) is not None:
            push(line)
    return walked


def _row(tree: Runs, line: int) -> Row:
    return Row(line, int(tree.parent[line]), 0, int(tree.blocks[line]), int(tree.hits[line]))


def _chosen(children: _Children, begin: Collection[int], most: int, shown: set[int]) -> set[int]:
    """The best `most`; a run is chosen only after the one it goes on from."""
    heap = sorted((int(children.rank[line]), int(line)) for line in begin)
    while heap and len(shown) < most:
        _, line = heapq.heappop(heap)
        shown.add(line)
        for child in children.of(line)[:most].tolist():
            heapq.heappush(heap, (int(children.rank[child]), child))
    return shown
