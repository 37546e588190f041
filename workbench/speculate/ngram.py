"""Drafts from a request's own tokens: what followed when its last few tokens stood there before.

Prompt lookup (A. Saxena 2023): of the last tokens, the longest run that occurred earlier, where it did last.
Where each run of `shortest` .. `longest` tokens ended last, a hash table of each row tells. A step enters the
tokens that are new and asks once for each length, for all requests at once: what it costs does not depend on
how long they are, but where a request has doubled and its table does. What a table says is compared with the
tokens themselves, so that neither two runs that share a slot nor what an earlier request left behind can do
harm.
"""

from __future__ import annotations

import numpy as np

from workbench.engine.drafting import Proposals
from workbench.engine.plan import Bools, Ints
from workbench.engine.running import Longs
from workbench.speculate.drafter import Ask

_FACTOR = 0x2545_F491_4F6C_DD1D  # of the runs' hash, a sum of its powers by their tokens: any odd number

_ONLY: Longs = np.zeros(1, np.int64)  # stands for any number of lines

ROOM = 4  # slots a token, at least: of the runs entered, about one in ten is lost to another


def _power(least: int) -> int:
    """The power of two that is that much, or the next larger one."""
    return 1 << (least - 1).bit_length()


class NgramDrafter:
    """Runs of each batch row."""

    def __init__(self, max_rows: int, max_length: int, shortest: int, longest: int) -> None:
        """`shortest`, `longest`: tokens of the runs that are looked up."""
        longest = min(longest, max_length)
        shortest = min(shortest, longest)
        self._sizes = np.arange(shortest, longest + 1)[:, None]  # [sizes, 1]
        self._back = np.arange(longest)[:, None]  # [longest, 1]; tokens back from a run's end
        self._beyond = self._back >= self._sizes[:, :, None]  # [sizes, longest, 1]; no token of the run
        powers = [_FACTOR]
        while len(powers) < longest:
            powers.append(powers[-1] * _FACTOR % (1 << 64))
        self._factors = np.array(powers, np.uint64).astype(np.int64)[:, None]  # [longest, 1]
        self._slots = _power(ROOM * max_length)
        self._masks: Longs = np.zeros(max_rows, np.int64)  # slots in use, less 1
        self._entered: Longs = np.zeros(max_rows, np.int64)  # ends of runs up to there are in the tables
        # By size and row: a slot holds the end of the run that was entered last, 0: none. The system hands
        # out zero pages when they are first touched: rows and lengths nobody has take no memory.
        self._ends: Ints = np.zeros(len(self._sizes) * max_rows * self._slots, np.int32)
        self._tables = np.arange(len(self._sizes))[:, None] * max_rows  # [sizes, 1]

    def enter(self, row: int, token_ids: Ints, root: bytes) -> None:
        self._empty(row, len(token_ids))

    def _empty(self, row: int, length: int) -> None:
        """A table for twice as many tokens, with none of them."""
        self._entered[row] = 0
        self._masks[row] = min(_power(2 * ROOM * length), self._slots) - 1

    def leave(self, row: int, token_ids: Ints, num_prompt_tokens: int) -> None:
        """Nothing of one request serves another."""

    def propose(self, ask: Ask) -> Proposals:
        rows, lengths, most, tokens = ask
        flat, first = tokens.reshape(-1), rows * tokens.shape[1]
        for place in (ROOM * lengths > self._masks[rows] + 1).nonzero()[0].tolist():
            self._empty(rows[place], int(lengths[place]))
        ends, owners = self._new_ends(rows, lengths)
        count = len(ends) - len(rows)
        # [longest, ends], the last token first. Ahead of a request's first token lies somebody else's: no run
        # that would reach there counts.
        runs = flat.take(first[owners] + ends - 1 - self._back)
        slots = self._slots_of(runs, rows[owners])
        fits = ends >= self._sizes
        self._enter(slots[:, :count], ends[:count], fits[:, :count])
        found = self._ends.take(slots[:, count:])  # [sizes, r]
        right = self._right(found, first, lengths, flat, runs[:, count:]) & fits[:, count:]
        size = len(self._sizes) - 1 - right[::-1].argmax(0)
        places = np.arange(len(rows))
        counts = np.where(right[size, places], most, 0)
        return Proposals(counts, self._following(found[size, places], first, lengths, counts, flat))

    def _new_ends(self, rows: Longs, lengths: Longs) -> tuple[Longs, Longs]:
        """Where runs end that are not in the tables yet, then where each row ends; and whose they are.

        What follows the last token of all is not known yet: it is entered the next time.
        """
        entered = self._entered[rows]
        self._entered[rows] = lengths - 1
        if len(rows) == 1:
            return np.arange(min(entered[0] + 1, lengths[0]), lengths[0] + 1), _ONLY
        new = np.maximum(lengths - 1 - entered, 0)
        total, places = new.cumsum(), np.arange(len(rows))
        owners = places.repeat(new)
        begins = entered + 1 - total + new
        ends = np.concatenate([begins[owners] + np.arange(total[-1]), lengths])
        return ends, np.concatenate([owners, places])

    def _enter(self, slots: Longs, ends: Longs, fits: Bools) -> None:
        """Of runs [sizes, n] that end at `ends` [n], those that are whole."""
        if fits.all():
            self._ends[slots] = ends
        else:
            self._ends[slots[fits]] = np.broadcast_to(ends, fits.shape)[fits]

    def _right(self, found: Ints, first: Longs, lengths: Longs, flat: Ints, runs: Ints) -> Bools:
        """[sizes, r]; whether what ends at `found` [sizes, r] is the run [longest, r] that ends each row."""
        there = flat.take((found + (first - 1))[:, None] - self._back)  # [sizes, longest, r]
        same = ((there == runs) | self._beyond).all(1)
        right: Bools = (found > 0) & (found < lengths) & same
        return right

    def _following(self, ends: Ints, first: Longs, lengths: Longs, counts: Longs, flat: Ints) -> Ints:
        """[counts.sum()]; what follows `ends` in each row.

        A run that overlaps what follows it repeats: beyond the last token it goes on as it went before.
        """
        offsets = np.arange(counts.max(initial=0))
        kept = offsets < counts[:, None]
        period = np.maximum(lengths - ends, 1)
        if len(offsets) > period.min(initial=len(offsets)):
            offsets = offsets % period[:, None]
        return flat.take(((first + ends)[:, None] + offsets)[kept])

    def _slots_of(self, runs: Ints, owners: Longs) -> Longs:
        """[sizes, ends]; where the table of each row and size has the run that ends there."""
        hashed = (runs + 1) * self._factors
        for longer in range(1, len(hashed)):  # a row after the other: far quicker than cumsum along that axis
            hashed[longer] += hashed[longer - 1]
        hashed = hashed[self._sizes[0, 0] - 1 :] >> 40
        hashed &= self._masks[owners]
        hashed += (self._tables + owners) * self._slots
        found: Longs = hashed
        return found
