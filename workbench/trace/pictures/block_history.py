"""How every KV block stood in every step, from the lines of the blocks table. Data for the cache map.

A block's last line says how it stands: how many hold it, and whether it is found by a key. So a state is the
last line of each block, and checkpoints make it cheap to have at any step. Lines are read once, however often
the table has grown since. Draws nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.trace.schema import Table

Longs = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]

# A block's code is twice its holders, two standing for all above one, and one more where it is findable.
CODES = 6
FREE, CACHED, HELD, HELD_FINDABLE, SHARED, SHARED_FINDABLE = range(CODES)
UNKNOWN = CODES  # the trace began later, and says nothing of it
UNSEEN = -1
NO_LINE = -1
EVERY = 65_536  # lines between two checkpoints

# What one line says of the time before it: holders more than afterwards; whether the block was findable.
_HOLDERS_BEFORE = {"reserved": -1, "reused": -1, "released": 1}
_FINDABLE_BEFORE = frozenset(("reused", "evicted", "withdrawn"))


class BlockStates(NamedTuple):
    """All blocks as one step finds them; [blocks] each, of which the first is block 1."""

    step: int | None  # None: after all that was told
    codes: Codes
    holders: Longs  # requests that hold it; where the trace began later, at least
    lines: Longs  # of the blocks table, the last about it by then; NO_LINE where there is none
    evicted: Bools  # its key was forgotten between the step before and this one

    def count(self, *codes: int) -> int:
        """Blocks of these codes."""
        return int(np.isin(self.codes, codes).sum())


class BlockHistory:
    """Reads a run's blocks table as it grows: `take`, then `at` any step."""

    def __init__(self) -> None:
        self._after: Codes = np.empty(0, np.int8)  # by line
        self._evictions: Longs = np.empty(0, np.int64)  # lines
        self._now: Codes = np.empty(0, np.int8)  # by block, of the lines read; [0] is no block
        self._begin: Codes = np.empty(0, np.int8)  # by block, ahead of its first line
        self._last: Longs = np.empty(0, np.int64)  # by block
        self._checkpoints: list[Longs] = []  # `_last`, each after EVERY lines more
        self._steps: Longs = np.empty(0, np.int64)  # in which something changed; one may stand there twice
        self._changes = np.zeros((1, CODES), np.int64)  # blocks of each code more than at the beginning
        self._table: Table = {}
        self._whole = True
        self._total = 0

    def take(self, blocks: Table, steps: Table) -> None:
        """What the tables hold by now; of steps there is at least one."""
        self._table, read = blocks, len(self._after)
        self._total = int(steps["blocks_free"][0] + steps["blocks_held"][0])
        new = {name: column[read:] for name, column in blocks.items()}
        if len(new["step"]):
            self._widen(max(self._total, int(new["block"].max())) + 1)
            self._add(new, read)
        self._widen(self._total + 1)
        known = self.counts(steps["step"][:1])[0]
        there = (int(steps["blocks_held"][0]), int(steps["blocks_cached"][0]))
        # Whoever was held or findable and is never spoken of is missing here.
        self._whole = (int(known[HELD:CODES].sum()), int(known[1:CODES:2].sum())) == there

    def _widen(self, size: int) -> None:
        more = (0, max(size - len(self._now), 0))
        self._now = np.pad(self._now, more, constant_values=UNSEEN)
        self._begin = np.pad(self._begin, more, constant_values=UNSEEN)
        self._last = np.pad(self._last, more, constant_values=NO_LINE)

    def _add(self, new: Table, read: int) -> None:
        blocks, evicted = new["block"], new["event"] == "evicted"
        findable = new["key"].astype(np.bool_)  # None where there is none
        forgets = evicted | (new["event"] == "withdrawn")
        after = (2 * np.minimum(new["holders"], 2) + (findable & ~forgets)).astype(np.int8)
        order = np.argsort(blocks, kind="stable")
        before = np.empty_like(after)
        before[order[1:]] = after[order[:-1]]
        first = order[np.diff(blocks[order], prepend=0) != 0]  # of its block among these lines
        before[first] = self._now[blocks[first]]
        fresh = first[before[first] == UNSEEN]
        before[fresh] = self._begin[blocks[fresh]] = _codes_before(new, findable, fresh)
        self._now[blocks] = after  # a block's last line wins
        self._after = np.concatenate([self._after, after])
        self._evictions = np.concatenate([self._evictions, read + np.flatnonzero(evicted)])
        self._remember(blocks, read)
        self._count(new["step"], before, after)

    def _remember(self, blocks: Longs, read: int) -> None:
        """`_last` moves on over these lines, with a copy at each checkpoint."""
        begin, end = read, read + len(blocks)
        while begin < end:
            until = min(end, (begin // EVERY + 1) * EVERY)
            self._last[blocks[begin - read : until - read]] = np.arange(begin, until)
            if until % EVERY == 0:
                self._checkpoints.append(self._last.copy())
            begin = until

    def _count(self, steps: Longs, before: Codes, after: Codes) -> None:
        starts = np.flatnonzero(np.diff(steps, prepend=steps[0] - 1))
        codes = range(CODES)
        deltas = [np.add.reduceat((after == c).astype(np.int64) - (before == c), starts) for c in codes]
        self._steps = np.concatenate([self._steps, steps[starts]])
        changes = self._changes[-1] + np.cumsum(np.stack(deltas, axis=1), axis=0)
        self._changes = np.concatenate([self._changes, changes])

    # --- what it was at a step ------------------------------------------------------------------------

    def counts(self, steps: Longs) -> Longs:
        """[steps, CODES + 1]; blocks of each code as these steps found them."""
        begin = self._begin[1 : self._total + 1]
        seen = np.bincount(begin[begin != UNSEEN], minlength=CODES)
        found = seen + self._changes[np.searchsorted(self._steps, steps, "right")]
        unseen = len(begin) - int(seen.sum())
        if self._whole:
            found[:, FREE] += unseen
            unseen = 0
        return np.column_stack([found, np.full(len(steps), unseen)])

    def at(self, step: int | None = None) -> BlockStates:
        """All blocks as this step found them; None: after all that was told."""
        told = self._table["step"]
        begin, end = (len(told), len(told))
        if step is not None:
            begin, end = np.searchsorted(told, (step, step + 1)).tolist()
        last = self._last_by(end)[1 : self._total + 1]
        there, size = last != NO_LINE, self._total
        codes, holders = self._begin[1 : size + 1].copy(), np.zeros(size, np.int64)
        codes[codes == UNSEEN] = FREE if self._whole else UNKNOWN
        holders[codes != UNKNOWN] = codes[codes != UNKNOWN] // 2
        codes[there], holders[there] = self._after[last[there]], self._table["holders"][last[there]]
        evicted, lines = np.zeros(size, np.bool_), self._evictions
        lines = lines[slice(*np.searchsorted(lines, (begin, end)).tolist())]
        evicted[self._table["block"][lines] - 1] = True
        return BlockStates(step, codes, holders, last, evicted)

    def _last_by(self, end: int) -> Longs:
        """By block, the last of the first `end` lines."""
        place = min(end // EVERY, len(self._checkpoints))
        if end == len(self._after):
            return self._last
        if place:
            last = self._checkpoints[place - 1].copy()
            last = np.pad(last, (0, max(len(self._last) - len(last), 0)), constant_values=NO_LINE)
        else:
            last = np.full(len(self._last), NO_LINE)
        last[self._table["block"][place * EVERY : end]] = np.arange(place * EVERY, end)
        return last


def _codes_before(new: Table, findable: Bools, lines: Longs) -> Codes:
    """How blocks stood ahead of these lines, the first about them."""
    kinds = new["event"][lines].tolist()
    more = np.array([_HOLDERS_BEFORE.get(kind, 0) for kind in kinds], np.int64)
    was_found = np.array([kind in _FINDABLE_BEFORE for kind in kinds], np.bool_)
    released = np.array([kind == "released" for kind in kinds], np.bool_)
    holders = np.clip(new["holders"][lines] + more, 0, 2)
    codes: Codes = (2 * holders + (was_found | (released & findable[lines]))).astype(np.int8)
    return codes
