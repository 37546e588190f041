"""Which prefixes could be found in the cache in every step, how often each was, and what became of it.

Reads the lines of the blocks table once, however often it has grown since. A key stands for a whole prefix;
keys get numbers here. Draws nothing.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.trace.pictures.key_chains import KeyChains, shown
from workbench.trace.pictures.namesakes import NOBODY
from workbench.trace.pictures.sequences import Sequences
from workbench.trace.schema import Table

Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ROOT, NOT_KNOWN, NOT_ASKED = -1, -2, -3  # in place of a parent's number
NO_KEY = -1


class Findable(NamedTuple):
    """What could be found at one time, of one KV group."""

    keys: Longs  # their numbers
    hits: Longs  # requests that found each by then, since it was cached first
    lines: Longs  # of the blocks table, the first about each


class Gone(NamedTuple):
    """A prefix that could be found once."""

    step: int
    event: str  # evicted or withdrawn
    reason: str
    request_id: str | None  # that the block was taken for


class PrefixLog:
    """Reads a run's blocks table as it grows: `take`, then `findable` at any step."""

    def __init__(self) -> None:
        # Numbers of keys, by KV group and text; no number is in two groups.
        self._numbers: defaultdict[int, dict[str | None, int]] = defaultdict(lambda: {None: NO_KEY})
        self._groups: Longs = np.empty(0, np.int64)  # by key
        self._first: Longs = np.empty(0, np.int64)  # by key: line
        self._was_known: Bools = np.empty(0, np.bool_)  # by key: it was there before its first line
        self._parents: Longs = np.empty(0, np.int64)  # by key
        self._followed = 0  # lines that parents are known from
        self._latest: Longs = np.empty(0, np.int64)  # by line of requests: the last line that gave it a block
        self._keys: Longs = np.empty(0, np.int64)  # by line
        self._forgets: Bools = np.empty(0, np.bool_)
        self._reused: Bools = np.empty(0, np.bool_)
        self._table: Table = {}
        self._there: dict[int, Bools] = {}  # by end of the lines that count: the last answer of `is_there`

    def take(self, blocks: Table) -> None:
        """What the table holds by now."""
        self._table, read = blocks, len(self._keys)
        events, groups = blocks["event"][read:], blocks["group"][read:]
        keys = self._numbered(groups, blocks["key"][read:])
        if len(keys):
            self._there.clear()
            self._take_new(keys, groups, events, read)
        self._keys = np.concatenate([self._keys, keys])
        self._forgets = np.concatenate([self._forgets, (events == "evicted") | (events == "withdrawn")])
        self._reused = np.concatenate([self._reused, events == "reused"])

    def _numbered(self, groups: Longs, keys: npt.NDArray[np.object_]) -> Longs:
        """The number of each line's key; those not told of before get the next ones."""
        found, count = np.empty(len(keys), np.int64), len(self._groups)
        for group in np.unique(groups).tolist():
            lines, numbers = groups == group, self._numbers[group]
            said = keys[lines].tolist()
            fresh = [key for key in dict.fromkeys(said) if key not in numbers]
            numbers.update(zip(fresh, range(count, count + len(fresh)), strict=True))
            count += len(fresh)
            found[lines] = list(map(numbers.__getitem__, said))
        return found

    def _take_new(self, keys: Longs, groups: Longs, events: npt.NDArray[np.object_], read: int) -> None:
        """Keys that the lines from `read` on are the first about."""
        known = len(self._groups)
        lines = np.flatnonzero(keys >= known)
        first = np.empty(max(int(keys.max()) + 1 - known, 0), np.int64)
        first[keys[lines[::-1]] - known] = lines[::-1]  # of several lines about a key the first one stays
        self._groups = np.concatenate([self._groups, groups[first]])
        self._first = np.concatenate([self._first, first + read])
        self._was_known = np.concatenate([self._was_known, events[first] != "cached"])
        self._parents = np.concatenate([self._parents, np.full(len(first), NOT_ASKED)])

    def number(self, key: bytes, group: int = 0) -> int | None:
        """Of a key that was ever told of."""
        return self._numbers[group].get(shown(key))

    # --- at a time ------------------------------------------------------------------------------------

    def _end(self, step: int | None) -> int:
        """Lines that a step counts; None: all."""
        told = self._table["step"]
        return len(told) if step is None else int(np.searchsorted(told, step, "right"))

    def is_there(self, step: int | None) -> Bools:
        """By key: whether it was found."""
        end = self._end(step)
        if end not in self._there:
            self._there = {end: self._there_by(end)}
        return self._there[end]

    def _there_by(self, end: int) -> Bools:
        last = np.full(len(self._first), NO_KEY)
        lines = np.flatnonzero(self._keys[:end] != NO_KEY)
        last[self._keys[lines]] = lines  # the last line of a key wins
        told = last != NO_KEY
        there = self._was_known.copy()
        there[told] = ~self._forgets[last[told]]
        return there

    def findable(self, step: int | None = None, group: int = 0) -> Findable:
        """What a lookup in this step would find (None: now)."""
        end = self._end(step)
        there = self.is_there(step) & (self._groups == group)
        keys = np.flatnonzero(there)
        found = self._keys[:end][self._reused[:end]]
        hits = np.bincount(found[found != NO_KEY], minlength=len(there))
        return Findable(keys, hits[keys], self._first[keys])

    def gone(self, key: bytes, step: int | None = None) -> Gone | None:
        """When and why a prefix was forgotten last; None: it never was."""
        number, end = self.number(key), self._end(step)
        if number is None:
            return None
        lines = np.flatnonzero((self._keys[:end] == number) & self._forgets[:end])
        if not len(lines):
            return None
        columns = (self._table[name][lines[-1]] for name in ("step", "event", "reason", "request_id"))
        told, event, reason, request_id = columns
        return Gone(int(told), event, reason, request_id)

    def speakers(self, key: int, step: int | None = None) -> list[int]:
        """Lines about a key, of those who wrote it or found it, the latest first."""
        end = self._end(step)
        lines = np.flatnonzero((self._keys[:end] == key) & ~self._forgets[:end])
        told: list[int] = lines[::-1].tolist()
        return told

    def depths(self, lines: Longs, block_size: int) -> Longs:
        """Blocks ahead of those that these lines are about; 0 where the trace began later."""
        positions: npt.NDArray[np.float64] = self._table["position"][lines]
        return np.nan_to_num(positions).astype(np.int64) // block_size

    # --- chains ---------------------------------------------------------------------------------------

    def writer(self, key: int, sequences: Sequences) -> tuple[int, int]:
        """Line of the requests table, and position, of the first that is told to have had it."""
        line = self._first[key]
        position = self._table["position"][line]
        return (NOBODY, 0) if np.isnan(position) else (self.whose(line, sequences), int(position))

    def whose(self, line: int, sequences: Sequences) -> int:
        """Line of the requests table that a line of the blocks table is about; NOBODY: none."""
        name = self._table["request_id"][line]
        return NOBODY if name is None else sequences.place(name, float(self._table["at_s"][line]))

    def parents(self, keys: Longs, sequences: Sequences, chains: KeyChains) -> Longs:
        """The key that stands for the prefix one block shorter: its number, ROOT, or NOT_KNOWN."""
        self._follow(sequences, chains.block_size)
        asked = keys[self._parents[keys] == NOT_ASKED]
        if len(asked):
            self._work_out(asked, sequences, chains)
        return self._parents[keys]

    def _follow(self, sequences: Sequences, block_size: int) -> None:
        """Parents that the order of the lines says: a request gets its blocks one behind the other.

        Most are known by this, and it is far less work than to hash all tokens again.
        """
        begin, self._followed = self._followed, len(self._keys)
        new = {name: column[begin:] for name, column in self._table.items()}
        gives = (self._reused[begin:] | (new["event"] == "cached")) & (new["group"] == 0)
        lines = np.flatnonzero(gives)
        whose = sequences.places(new["request_id"][lines], new["at_s"][lines])
        order = np.argsort(whose, kind="stable")
        order = order[whose[order] != NOBODY]
        lines, whose = lines[order] + begin, whose[order]
        before = self._line_before(lines, whose)
        keys, positions = self._keys[lines], self._table["position"]
        goes_on = (before >= 0) & (positions[lines] == positions[before] + block_size)
        self._parents[keys[goes_on]] = self._keys[before[goes_on]]
        self._parents[keys[positions[lines] == 0]] = ROOT

    def _line_before(self, lines: Longs, whose: Longs) -> Longs:
        """The one that gave the same request its block before; -1: none. The lines are sorted by request."""
        missing = int(whose.max(initial=NOBODY)) + 1 - len(self._latest)
        self._latest = np.pad(self._latest, (0, max(missing, 0)), constant_values=-1)
        first = np.diff(whose, prepend=NOBODY) != 0
        before = np.roll(lines, 1)
        before[first] = self._latest[whose[first]]
        self._latest[whose] = lines  # a request's last line wins
        return before

    def _work_out(self, asked: Longs, sequences: Sequences, chains: KeyChains) -> None:
        """Those that the lines do not say: where another request had written what comes before."""
        lines = self._first[asked]
        self._parents[asked] = NOT_KNOWN
        places = sequences.places(self._table["request_id"][lines], self._table["at_s"][lines])
        by_writer: dict[int, list[int]] = defaultdict(list)
        for key, place in zip(asked.tolist(), places.tolist(), strict=True):
            by_writer[place].append(key)
        for place, keys in by_writer.items():
            if place != NOBODY:
                self._link(keys, sequences.root(place), sequences.of(place), chains)

    def _link(self, keys: list[int], root: bytes, tokens: Longs, chains: KeyChains) -> None:
        """Parents of keys that one request wrote, from its tokens."""
        chain = [self.number(key) for key in chains.keys(root, tokens)]
        before = {key: place for place, key in enumerate(chain) if key is not None}
        for key in keys:
            place = before.get(key)
            if place is not None:
                parent = chain[place - 1] if place else ROOT
                self._parents[key] = NOT_KNOWN if parent is None else parent
